from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from hosts import CATALOGUE, build_tiny_pipeline, build_tiny_task
from tiny_families import SIDE, build_family

from erase.cli import build_parser, main
from erase.core.names import filter_names
from erase.methods import methods, serving
from erase.methods.esd import ESDConfig
from erase.methods.salun import SalUnConfig
from erase.models.opening import Model
from erase.prompts.request import PLAIN_TEMPLATES, EraseRequest, expand
from erase.runs.erase import RunConfig
from erase.runs.plan import plan
from erase.tasks.diffusion.task import DiffusionTask
from erase.training.config import TrainedConfig, TrainingConfig


def planned(pipeline, method, **options) -> str:
    model = Model("tiny", pipeline, CATALOGUE)
    config = RunConfig(EraseRequest(["ghost"]), "tiny", method, **options)
    return plan(config, model, build_tiny_task(pipeline, (), SIDE))


def memory(text: str) -> float:
    (line,) = (line for line in text.splitlines() if "memory" in line)
    return float(line.split("|")[2].split()[0])


def test_a_plan_counts_what_it_names():
    pipeline = build_tiny_pipeline()
    task = build_tiny_task(pipeline, ())
    count = sum(parameter.numel() for parameter in task.parameters().values())
    text = planned(pipeline, "salun", method_config=SalUnConfig(density=0.25))
    assert f"| mask | {int(count * 0.25)} of {count} weights, {count / 8e6:.1f} MB" in text
    assert "| training | 100 steps, learning rate 0.001 |" in text


def test_a_plan_counts_the_tensors_that_the_method_trains(tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, ())
    read = filter_names(task.editable(), task.family.attention)
    assert 0 < len(read) < len(task.editable())
    for variant, trained in (("x", read), ("all", task.editable())):
        text = planned(tiny_pipeline, "esd", method_config=ESDConfig(variant))
        assert f"| tensors that may change | {len(trained)}, " in text


@pytest.mark.parametrize("method", serving(DiffusionTask))
def test_a_plan_counts_the_teachers_that_the_method_makes(method, tiny_pipeline):
    task = build_tiny_task(tiny_pipeline, ())
    teachers, copy = [], task.frozen_copy
    task.frozen_copy = lambda *trained: teachers.append(method) or copy(*trained)
    chosen = methods()[method]
    config = chosen.config()
    if isinstance(config, TrainedConfig):
        config = replace(config, training=TrainingConfig(max_train_steps=1))
    needs = chosen.needs(task, config)
    chosen(task, config)
    assert len(teachers) == needs.teachers


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux", "pixart"])
def test_every_family_has_a_plan(family):
    pipeline = build_family(family)
    text = planned(pipeline, "projection")
    assert f"| family | {family} |" in text
    assert "training" not in text


def test_a_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--concept", "ghost", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "salun on emoji" in said
    assert memory(said) > 0.1
    assert not list(Path(tmp_path).iterdir())


CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("[esf][mdl]*/*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_ready_configs_are_whole(path):
    """All but the weights, which are nobody's to bundle, is read and checked."""
    words = ["--config", str(path)]
    parser = build_parser("run", words)
    options = parser.parse_args(words)
    made = parser.instantiate(options)
    request = EraseRequest(
        options.concept, options.anchor, retain=options.retain,
        templates=options.template or PLAIN_TEMPLATES,
    )  # fmt: skip
    known = CATALOGUE if options.model == "emoji" else None
    assert known or expand(request, None).forget
    assert isinstance(made[made.method], methods()[made.method].config)
    assert f"configs/{path.parent.name}/{path.name}" in path.read_text()


@pytest.mark.parametrize("flag", ["--config", "--conf"])
def test_a_config_may_set_any_method(flag, tmp_path):
    (tmp_path / "some.yaml").write_text("method: uce\nuce: {prompts: 7}\nrece: {rounds: 2}\n")
    words = [flag, str(tmp_path / "some.yaml"), "--concept=ghost", "--salun.dens=.3"]
    options = build_parser("run", words).parse_args(words)
    assert (options.uce.prompts, options.rece.rounds, options.salun.density) == (7, 2, 0.3)


ASKED = {"calibrate": ["--forget=class:3"], "forget-set": ["--count=9", "--output=o"]}


@pytest.mark.parametrize("command", ASKED)
@pytest.mark.parametrize("flag", ["--co", "--con"])
def test_a_config_flag_cut_short_is_whole_or_ambiguous(flag, command, tmp_path, capsys):
    (tmp_path / "some.yaml").write_text("method: uce\nuce: {prompts: 7}\n")
    words = [*ASKED[command], flag, str(tmp_path / "some.yaml")]
    with suppress(SystemExit):
        assert build_parser(command, words).parse_args(words).uce.prompts == 7
        return
    assert f"ambiguous option: {flag} could" in capsys.readouterr().err


def test_options_of_a_method_that_is_not_chosen_are_read():
    words = ["--concept=ghost", "--uce.prompts=5"]
    options = build_parser("run", words).parse_args(words)
    assert (options.method, options.uce.prompts) == ("salun", 5)
    assert {"uce", "salun"} == {*methods()} & {*vars(options)}
