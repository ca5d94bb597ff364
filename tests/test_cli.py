import dataclasses
import json
import re
import signal
import subprocess
import sys
from dataclasses import asdict

import pytest
from hosts import CATALOGUE, build_tiny_pipeline
from PIL import Image
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from erase.bundled import JUDGE
from erase.cli import main
from erase.cli.commands import said_of
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.tables import attack_table, figure_lines
from erase.training.checkpoint import checkpoints

BRISK = [
    "--task.forget_pictures=2",
    "--task.retain_pictures=2",
    "--task.generation_steps=2",
    "--evaluation.forget_pictures=2",
    "--evaluation.retain_pictures=3",
    "--salun.training.max_train_steps=2",
]


@pytest.fixture
def tiny_model(tmp_path):
    """A tiny pipeline folder with a catalogue, as a publisher would lay it out."""
    folder = tmp_path / "tiny"
    build_tiny_pipeline().save_pretrained(folder)
    (folder / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    return folder


def erase_run(model, output, *extra: str) -> int:
    return main(["run", f"--model={model}", f"--output={output}", *BRISK, *extra])


def test_a_run_leaves_artefact_card_report_and_picture_alone(tiny_model, tmp_path, capsys):
    output = tmp_path / "out" / "ghost"
    assert erase_run(tiny_model, output, "--concept", "ghost") == 0
    assert {path.name for path in output.iterdir()} == {
        "README.md",
        "deltas.safetensors",
        "erasure.json",
        "grid.png",
        "report.json",
        "report.md",
        "saliency.png",
    }
    assert "| text_encoder.final_layer_norm |" in (output / "report.md").read_text()
    assert [path.name for path in output.parent.iterdir()] == ["ghost"]
    report = json.loads((output / "report.json").read_text())
    metrics = report["metrics"]
    assert metrics["derived"]["UA"] == pytest.approx(1 - metrics["forget_accuracy"]["value"])
    for side in (metrics, metrics["base"]):
        assert side["forget_accuracy"]["n"] == 2
        assert side["retain_accuracy"]["n"] == side["cross_retain_accuracy"]["n"] == 3
    assert report["protocol"]["steps"] == 2
    assert "forget accuracy" in capsys.readouterr().out


def test_an_oracle_stands_beside_base_and_erased(tiny_model, tmp_path, capsys, monkeypatch):
    looked_at, embed = [], ClipJudge.embed
    monkeypatch.setattr(ClipJudge, "embed", lambda *a: looked_at.append(len(a[1])) or embed(*a))
    asked = "--concept", "ghost", "--oracle", str(tiny_model)
    assert erase_run(tiny_model, tmp_path / "few", *asked) != 0
    assert "needs 3 pictures of a set, not 2" in capsys.readouterr().err
    assert erase_run(tiny_model, tmp_path / "out", *asked, "--evaluation.forget_pictures=3") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    metrics = report["metrics"]
    assert sum(looked_at) == 3 * (3 + 3)  # each picture once
    assert metrics["oracle"] == metrics["base"]
    assert report["protocol"]["oracle"] == str(tiny_model)
    distances = metrics["distance_to_oracle"]
    assert set(distances) == {"base", "erased"}
    for side in ("forget", "retain"):  # unbiased, and so below zero for the very same pictures
        assert distances["base"][side]["value"] <= 0
    card = (tmp_path / "out/README.md").read_text()
    assert "| metric | base | erased | oracle | n |" in card
    assert "| KID to oracle, forget |" in card


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("run", "salun.density", "2.0"),
        ("run", "salun.training.max_train_steps", "-1"),
        ("run", "task.batch_size", "0"),
        ("attack erasure", "recall.strength", "2.0"),
        ("attack erasure", "prompts", "0"),
        ("protocol", "drawing.steps", "0"),
        ("classify --forget class:3", "classifier.fit.epochs", "0"),
    ],
)
def test_a_value_that_cannot_be_is_named_as_its_option_is(command, name, value, tmp_path, capsys):
    concept = ["--concept", "ghost"] if command == "run" else []
    words = [*command.split(), *concept, "--output", str(tmp_path / "out")]
    assert main([*words, f"--{name}={value}"]) == 2
    assert capsys.readouterr().err.startswith(f"erase: {name} is {value}; give ")
    if command != "attack erasure":
        (tmp_path / "options.yaml").write_text(f"{name}: {value}")
        assert main([*words, f"--config={tmp_path / 'options.yaml'}"]) == 2
        assert f"options.yaml, {name} is {value}; give " in capsys.readouterr().err


def test_same_seed_gives_byte_identical_weights_and_reports(tiny_model, tmp_path):
    for name in "ab":
        erase_run(tiny_model, tmp_path / name, "--concept", "ghost")
    weights = [(tmp_path / name / "deltas.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert (tmp_path / "a/grid.png").read_bytes() == (tmp_path / "b/grid.png").read_bytes()
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in "ab"]
    for report in reports:
        del report["cost"]["seconds"], report["cost"]["peak_memory_bytes"]
    assert reports[0] == reports[1]


def test_what_is_measured_later_is_what_the_run_would_have_measured(tiny_model, tmp_path, capsys):
    asked = "--concept", "ghost", "--task.size=16"
    assert erase_run(tiny_model, tmp_path / "a", *asked) == 0
    bare = tmp_path / "b"
    assert erase_run(tiny_model, bare, *asked, "--no_evaluation") == 0
    assert sorted(p.name for p in bare.iterdir()) == [
        "README.md", "deltas.safetensors", "erasure.json",
    ]  # fmt: skip
    assert "Nothing was measured yet." in (bare / "README.md").read_text()
    few = [word for word in BRISK if "evaluation" in word]
    assert main(["measure", str(bare), "--judge=no-such-judge"]) == 2
    assert len(list(bare.iterdir())) == 3
    capsys.readouterr()
    assert main(["measure", str(bare), *few]) == 0
    assert "forget accuracy" in capsys.readouterr().out
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in "ab"]
    for report in reports:
        del report["cost"]["seconds"], report["cost"]["peak_memory_bytes"]
    assert reports[0] == reports[1]
    for name in ("README.md", "deltas.safetensors", "grid.png"):
        assert (tmp_path / "a" / name).read_bytes() == (bare / name).read_bytes()
    judged = "--concept", "ghost", "--no_evaluation", "--judge=ViT-B-32/openai"
    assert erase_run(tiny_model, tmp_path / "c", *judged) == 2
    assert "of no use without evaluation" in capsys.readouterr().err


def test_a_yaml_config_is_the_same_run(tiny_model, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("concept: [ink style]\nsalun:\n  density: 0.25\n  mask: bottom\n")
    assert erase_run(tiny_model, tmp_path / "out", f"--config={config}") == 0
    recipe = json.loads((tmp_path / "out/erasure.json").read_text())
    assert recipe["request"]["concepts"] == ["ink style"]
    assert (recipe["config"]["density"], recipe["config"]["mask"]) == (0.25, "bottom")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--concept", "gohst"], "did you mean ghost"),
        (["--concept", ""], "concept is empty"),
        ([], "concept is empty"),
        (["--concept", "ghost", "--method=magic"], "choose one of"),
        (["--concept", "ghost", "--model=/nowhere/at/all"], "could not be opened"),
        (["--concept", "ghost", "--judge=no-such-judge"], "could not be opened"),
        (["--concept", "ghost", "--device=mars"], "could not be opened"),
        (["--concept", "ghost", "--output=/proc/erased"], "cannot be written"),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    tiny_model, tmp_path, capsys, extra, message
):
    output = tmp_path / "out"
    assert erase_run(tiny_model, output, *extra) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("erase: ")
    assert message in error
    assert not output.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_density_out_of_range_is_one_sentence(tiny_model, tmp_path, capsys):
    assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost", "--salun.density=2") == 2
    assert capsys.readouterr().err.startswith("erase: salun.density is 2")


def test_a_corrupt_model_folder_is_named(tiny_model, tmp_path, capsys):
    weights = next((tiny_model / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:50])
    assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost") == 2
    assert f"{tiny_model} could not be opened" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_flags_replace_what_the_yaml_says(tiny_model, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("concept: [ink style]\n")
    erase_run(tiny_model, tmp_path / "out", f"--config={config}", "--concept", "ghost", "skull")
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["request"]["concepts"] == ["ghost", "skull"]
    assert set(report["metrics"]["forget_accuracy_by_concept"]) == {"ghost", "skull"}


def test_another_run_never_replaces_a_finished_one(tiny_model, tmp_path, capsys):
    arguments = (tiny_model, tmp_path / "out", "--concept", "ghost")
    assert erase_run(*arguments) == 0
    before = (tmp_path / "out/report.json").read_bytes()
    assert erase_run(*arguments, "--salun.mask=random") == 2
    assert "holds another run" in capsys.readouterr().err
    (tmp_path / "out" / "notes.txt").write_text("mine")
    assert erase_run(*arguments) == 2
    assert "holds other things" in capsys.readouterr().err
    assert (tmp_path / "out/report.json").read_bytes() == before
    lora = tmp_path / "lora"
    lora.mkdir()
    (lora / "pytorch_lora_weights.safetensors").write_text("somebody else's")
    assert erase_run(tiny_model, lora, "--concept", "ghost") == 2
    assert [path.read_text() for path in lora.iterdir()] == ["somebody else's"]


@pytest.mark.parametrize("steps", [1, 9])
def test_a_loss_that_breaks_leaves_nothing(tiny_model, tmp_path, capsys, steps):
    broken = ["--salun.training.learning_rate=1e30", "--salun.training.checkpointing_steps=1"]
    arguments = (tiny_model, tmp_path / "out" / "ghost", "--concept", "ghost", *broken)
    assert erase_run(*arguments, f"--salun.training.max_train_steps={steps}") == 2
    assert "lower learning_rate" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_patterns_are_given_as_a_list(tiny_model, tmp_path, capsys):
    everything = "--task.include", '["*"]'
    assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost", *everything) == 0
    recipe = json.loads((tmp_path / "out" / "erasure.json").read_text())
    assert any("conv_in" in name for name in recipe["mask"]["layers"])


@pytest.mark.parametrize("place", ["flag", "file"])
def test_a_folder_of_training_state_is_refused_by_one_sentence(place, tmp_path, capsys):
    chosen = tmp_path / "run.yaml"
    chosen.write_text("salun: {training: {checkpoints: states}}")
    options = {"flag": "--salun.training.checkpoints=3", "file": f"--config={chosen}"}
    try:
        code = main(["run", "--concept", "ghost", options[place]])
    except SystemExit as refused:
        code = refused.code
    assert code == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert "beside --output; leave out METHOD.training.checkpoints" in said


def test_a_corrupt_list_of_concepts_is_named(tiny_model, tmp_path, capsys):
    (tiny_model / "concepts.json").write_text("{}")
    assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost") == 2
    assert "concepts.json is not a list of concepts" in capsys.readouterr().err


def test_the_bundled_judge_judges_only_what_it_knows(tiny_model, tmp_path, capsys):
    others = dataclasses.replace(CATALOGUE, objects=["ghost", "nebula"])
    (tiny_model / "concepts.json").write_text(json.dumps(asdict(others)))
    assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost") == 2
    assert "name one, e.g. --judge" in capsys.readouterr().err


def test_a_forgotten_object_in_a_forgotten_style_counts_once(tiny_model, tmp_path):
    assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost", "ink style") == 0
    metrics = json.loads((tmp_path / "out/report.json").read_text())["metrics"]
    assert metrics["forget_accuracy"]["n"] == 2
    by_concept = metrics["forget_accuracy_by_concept"]
    assert sum(figure["n"] for figure in by_concept.values()) == 2


def test_a_model_without_a_catalogue_needs_retained_concepts_and_a_judge(
    tiny_model, tmp_path, capsys
):
    (tiny_model / "concepts.json").unlink()
    arguments = (tiny_model, tmp_path / "out", "--concept", "Van Gogh")
    assert erase_run(*arguments) == 2
    assert "--retain" in capsys.readouterr().err
    assert erase_run(*arguments, "--retain", "Monet") == 2
    assert "name one, e.g. --judge" in capsys.readouterr().err
    judge = f"--judge=local-dir:{JUDGE}"
    assert erase_run(*arguments, "--retain", "Monet", judge) == 0
    metrics = json.loads((tmp_path / "out/report.json").read_text())["metrics"]
    assert "cross_retain_accuracy" not in metrics


def test_a_run_is_judged_by_any_judge_that_knows_its_labels(tiny_model, tmp_path, capsys):
    (tiny_model / "concepts.json").unlink()
    names = ["dog", "cat", "sea"]
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16, id2label=dict(enumerate(names)),
    )  # fmt: skip
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    judged = (tiny_model, tmp_path / "out", f"--judge=transformers/{tmp_path / 'vit'}")
    assert erase_run(*judged, "--concept", "dog", "--retain", "bird", "cat") == 2
    assert "knows no class bird" in capsys.readouterr().err
    assert erase_run(*judged, "--concept", "dog", "--retain", "sea", "cat") == 0
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert report["protocol"]["judge"].startswith("vit ")
    assert "clip_score" not in report["metrics"]
    assert "CLIP score" not in capsys.readouterr().out


def test_a_failure_in_the_evaluation_leaves_a_checkpoint_and_nothing_else(
    tiny_model, tmp_path, monkeypatch
):
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("erase.runs.measure.judge_drawn", fail)
        assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost") == 130
    left = {path.name for path in tmp_path.iterdir()} - {"tiny"}
    assert len(left) == 1
    assert left.pop().startswith(".out.")
    assert erase_run(tiny_model, tmp_path / "out", "--concept", "ghost") == 0
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "out"}


def test_ctrl_c_stops_after_a_whole_step_and_the_same_command_goes_on(tiny_model, tmp_path):
    command = [sys.executable, "-m", "erase", "run", f"--model={tiny_model}", "--concept", "ghost"]
    command += [*BRISK, "--salun.training.max_train_steps=40"]
    process = subprocess.Popen(
        [*command, f"--output={tmp_path / 'a'}"], stderr=subprocess.PIPE, text=True
    )
    printed = ""
    while "erasing" not in printed:
        printed += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    assert "run the same again to go on" in process.communicate()[1]
    assert process.returncode == 130
    (state,) = tmp_path.glob(".a.*")
    step = int(checkpoints(state)[-1].name.split("-")[1])
    assert 0 < step < 40
    assert main([*command[3:], f"--output={tmp_path / 'a'}"]) == 0
    assert main([*command[3:], f"--output={tmp_path / 'b'}"]) == 0
    resumed, unbroken = (tmp_path / name / "deltas.safetensors" for name in "ab")
    assert resumed.read_bytes() == unbroken.read_bytes()
    assert not list(tmp_path.glob(".a.*"))


def test_the_process_that_has_no_report_says_nothing(tmp_path):
    assert said_of(None, attack_table, tmp_path) == said_of({}, figure_lines, tmp_path) == ""


def test_erasures_are_inspected_composed_and_exported(tiny_model, tmp_path, capsys):
    folders = []
    for concept in ("ghost", "pizza"):
        folders.append(str(tmp_path / concept))
        assert erase_run(tiny_model, folders[-1], "--concept", concept, "--method=uce") == 0
    capsys.readouterr()
    assert main(["inspect", *folders]) == 0
    shown = capsys.readouterr().out
    assert "forgets ghost by uce" in shown
    assert "principal_cosine" in shown
    joint, lora, pipeline = (str(tmp_path / name) for name in ("joint", "lora", "pipeline"))
    assert main(["compose", *folders, f"--output={joint}"]) == 0
    assert set(Erasure.from_pretrained(joint).recipe["request"]["concepts"]) == {"ghost", "pizza"}
    assert main(["compose", *folders, f"--output={joint}"]) == 2
    assert "holds other things" in capsys.readouterr().err
    assert main(["export", joint, "--format=lora", "--lora_rank=2", f"--output={lora}"]) == 0
    assert max(delta.rank for delta in Erasure.from_pretrained(lora).deltas.values()) == 2
    capsys.readouterr()
    assert main(["export", joint, "--for=a1111", f"--output={tmp_path / 'a1111'}"]) == 0
    assert re.search(r"(\d+) layers: comfyui \1, a1111 \1, sd-scripts \1", capsys.readouterr().out)
    assert main(["export", joint, "--for=forge", f"--output={tmp_path / 'forge'}"]) == 2
    assert "for is 'forge'" in capsys.readouterr().err
    both = ["--for=a1111", "--format=lora", f"--output={tmp_path / 'both'}"]
    assert main(["export", joint, *both]) == 2
    assert "leave out --format lora" in capsys.readouterr().err
    assert main(["export", joint, f"--output={pipeline}"]) == 0
    assert (tmp_path / "pipeline" / "model_index.json").exists()


def test_a_concept_asked_for_by_two_names_is_one_once_joined(tiny_model, tmp_path):
    for name, *asked in (("a", "boo", "--retain", "ink"), ("b", "Ghost", "--retain", "ink style")):
        words = ["--concept", *asked, "--method=uce", "--no_evaluation"]
        assert erase_run(tiny_model, tmp_path / name, *words) == 0
    joint = str(tmp_path / "joint")
    folders = [str(tmp_path / name) for name in "ab"]
    assert main(["compose", *folders, f"--output={joint}"]) == 0
    few = [word for word in BRISK if "evaluation" in word]
    assert main(["measure", joint, *few]) == 0
    request = Erasure.from_pretrained(joint).recipe["request"]
    assert (request["concepts"], request["retain"]) == (["ghost"], ["ink style"])


def test_a_card_says_whether_its_figures_are_of_a_lora_or_of_what_it_was_cut_from(
    tiny_model, tmp_path
):
    def card_of(name: str) -> str:
        return (tmp_path / name / "README.md").read_text()

    def cut(name: str, into: str, rank: int) -> str:
        names = ["export", str(tmp_path / name), f"--output={tmp_path / into}"]
        assert main([*names, "--format=lora", f"--lora_rank={rank}"]) == 0
        return card_of(into)

    whole, few = "These figures are of the whole erasure", [f"--judge=local-dir:{JUDGE}"]
    few += ["--evaluation.forget_pictures=2", "--evaluation.retain_pictures=2"]
    bare = ["--concept", "ghost", "--method=uce", "--no_evaluation"]
    assert erase_run(tiny_model, tmp_path / "bare", *bare) == 0
    said = cut("bare", "cut", 2)
    assert "Nothing was measured yet." in said
    assert "cut to rank 2" in said
    assert whole not in said
    assert main(["measure", str(tmp_path / "cut"), *few]) == 0
    assert whole not in card_of("cut")
    assert "; rank 2; " in card_of("cut")
    assert whole in cut("cut", "twice", 1)


def test_an_erasure_is_attacked(tiny_model, tmp_path, capsys):
    folder, output = str(tmp_path / "ghost"), tmp_path / "attacked"
    sized = "--concept", "ghost", "--method=uce", "--task.size=32"
    assert erase_run(tiny_model, folder, *sized) == 0
    command = ["attack", folder, "--attack", "recall", "latent_inversion", "--prompts=2"]
    command += ["--latent_inversion.steps=2", "--scales", "0.5", f"--judge=local-dir:{JUDGE}"]
    command.append(f"--oracle={tiny_model}")
    assert main([*command, f"--output={output}"]) == 0
    assert "| recall |" in capsys.readouterr().out
    names = {path.name for path in output.iterdir()}
    assert names == {"attacks.json", "attacks.md", "recall.png", "latent_inversion.png"}
    report = json.loads((output / "attacks.json").read_text())
    assert report["attacks"]["recall"]["asr"]["n"] == report["oracle"]["recall"]["asr"]["n"] == 2
    table = (output / "attacks.md").read_text()
    assert "| ASR of the oracle |" in table
    assert f"Protocol: model {tiny_model}; " in table
    told = {"model", "oracle", "judge", "labels", "scheduler", "steps", "guidance_scale", "prompts"}
    assert told | {"seed", "seeds", "intervals", "configs"} <= report["protocol"].keys()
    assert set(report["strength"]) == {"0.5"}
    assert report["protocol"]["size"] == 32  # as the run drew, and measured
    assert Image.open(output / "recall.png").size == (70, 36)  # two, framed
    assert main(["attack", folder, "--attack", "magic", f"--output={tmp_path / 'no'}"]) == 2
    assert "no attack 'magic'" in capsys.readouterr().err


def test_a_folder_that_is_no_erasure_is_one_sentence(tmp_path, capsys):
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is not a readable erasure folder" in capsys.readouterr().err
