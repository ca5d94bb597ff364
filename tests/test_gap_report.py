import copy
import dataclasses
import json

import pytest
import torch
from hosts import build_digits_task, digits
from intervals import mean_interval
from torch import nn
from torch.utils.data import TensorDataset

from erase.cli import main
from erase.evaluate.classifiers.gaps import Reference, Split, verdict
from erase.evaluate.tables import gap_table
from erase.methods import methods
from erase.methods.gradient_ascent import GradientAscentConfig
from erase.runs.calibrate import calibrate, hold_out
from erase.runs.classify import ClassifierConfig, load_or_train
from erase.tasks.classification.datasets import load_data
from erase.tasks.classification.fit import FitConfig, fit
from erase.training.checkpoint import checkpoints_in
from erase.training.loop import TrainingConfig

pytestmark = pytest.mark.xdist_group("classifier")  # trained once


@pytest.fixture(scope="module")
def split_and_models(trained):
    task = build_digits_task(trained)
    retrained = task.untrained().components["model"]
    fit(retrained, task.subset(task.retain), FitConfig(epochs=6))
    split = Split(digits(), task.forget, task.retain, load_data("digits").test)
    return split, trained, retrained


def unlearned_by(method: str, trained: nn.Module) -> nn.Module:
    task, model = build_digits_task(trained, learning_rate=1e-2), copy.deepcopy(trained)
    methods()[method](task).apply({"model": model})
    return model


def test_retrain_has_no_gap_to_itself(split_and_models):
    split, trained, retrained = split_and_models
    report = Reference(trained, retrained, split).report(retrained)
    assert set(report.gaps.values()) == {0.0}
    assert report.tow == 1.0
    assert report.unlearned["kl_to_retrained"] == pytest.approx(0.0, abs=1e-7)
    assert report.unlearned["agreement"] == 100.0
    assert report.verdict.startswith("within 2 points")
    json.dumps(report.to_json())


def test_doing_nothing_is_called_so(split_and_models):
    split, trained, retrained = split_and_models
    report = Reference(trained, retrained, split).report(trained)
    assert "indistinguishable from the original" in report.verdict
    assert report.unlearned["relearning_steps"] == 0 < report.retrained["relearning_steps"]


def test_bias_suppression_shows_in_the_probe_not_in_the_accuracy(split_and_models):
    split, trained, retrained = split_and_models
    suppressed = unlearned_by("bias_suppression", trained)
    report = Reference(trained, retrained, split).report(suppressed)
    assert report.unlearned["forget_accuracy"] == 0.0
    assert report.unlearned["probe_accuracy"] == report.original["probe_accuracy"]


def measured_on(split: Split, *classes: int) -> Split:
    pictures, labels = split.test.tensors
    kept = torch.isin(labels, torch.tensor(classes))
    return dataclasses.replace(split, test=TensorDataset(pictures[kept], labels[kept]))


def test_every_figure_is_a_number_whichever_classes_the_test_set_holds(split_and_models):
    split, trained, retrained = split_and_models
    split, threes = measured_on(split, 5), split.train.tensors[1] == 3
    report = Reference(trained, retrained, split).report(retrained)
    assert "nan" not in json.dumps(report.to_json()).lower() + gap_table(report)
    assert "probe_accuracy" not in report.unlearned
    rows = {"forget": threes.nonzero().flatten(), "retain": (~threes).nonzero().flatten()}
    of_a_class = dataclasses.replace(split, **{k: v.tolist() for k, v in rows.items()})
    for classes in ([3], []):
        with pytest.raises(
            ValueError, match=r"None of the \d+ samples to measure on is of a class that"
        ):
            measured_on(dataclasses.replace(of_a_class, test=load_data("digits").test), *classes)


def test_the_verdict_names_over_forgetting():
    near = {"forget_accuracy": 90.0, "retain_accuracy": 99.0, "test_accuracy": 95.0,
            "mia_efficacy": 10.0}  # fmt: skip
    rows = {"original": near | {"forget_accuracy": 99.0}, "retrained": near}
    rows["unlearned"] = near | {"forget_accuracy": 50.0, "retain_accuracy": 90.0}
    assert verdict(rows) == "over-forgets; damages what should stay"


def test_the_verdict_names_what_is_fitted_better_than_by_retrain():
    near = {"forget_accuracy": 90.0, "retain_accuracy": 90.0, "test_accuracy": 90.0,
            "mia_efficacy": 10.0}  # fmt: skip
    rows = {"original": near, "retrained": near, "unlearned": near | {"retain_accuracy": 99.0}}
    assert verdict(rows) == "fits what stays better than Retrain"


def test_intervals_are_students():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)


def test_the_calibrator_chooses_the_nearest_rate(trained, tmp_path):
    task = build_digits_task(trained)
    kept, held = hold_out(task.retain, 0.1, 0)
    assert sorted(kept + held) == task.retain
    retrained = fit(task.untrained().components["model"], task.subset(kept), FitConfig(epochs=6))
    config, rates = GradientAscentConfig(TrainingConfig(max_train_steps=20)), (1e-7, 1e-2)
    with checkpoints_in(tmp_path):
        found = calibrate("gradient_ascent", task, retrained, task.subset(held), config, rates)
    assert not list(tmp_path.iterdir())  # the values must not go on from one another
    assert max(found.gaps.values()) < 1e9
    assert found.value == min(found.gaps, key=found.gaps.get)
    assert len(found.gaps) == 2
    assert "gradient_ascent" in str(found)


def test_a_method_without_a_rate_is_calibrated_by_its_own_setting(trained):
    task = build_digits_task(trained)
    kept, held = hold_out(task.retain, 0.1, 0)
    retrained = fit(task.untrained().components["model"], task.subset(kept), FitConfig(epochs=2))
    found = calibrate("ssd", task, retrained, task.subset(held), values=(2.0, 1e9))
    assert found.setting == "selection"
    assert found.value == 2.0  # nothing is selected by the other, and so nothing forgotten
    with pytest.raises(ValueError, match="esd does not serve classifiers"):
        calibrate("esd", task, retrained, task.subset(held))
    with pytest.raises(ValueError, match="bias_suppression has nothing to calibrate"):
        calibrate("bias_suppression", task, retrained, task.subset(held))


SMALL = ["--classifier.model", "shufflenet_v2_x0_5", "--classifier.fit.epochs", "1"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "original.safetensors"
    arguments = [*SMALL, "--classifier.weights", str(path)]
    output = path.with_name("easy.json")
    main(["forget-set", *arguments, "--count", "100", "--output", str(output)])
    assert len(json.loads(output.read_text())) == 100
    whole = path.with_name("class.json")
    main(["forget-set", *arguments, "--count=1", "--unit=classes", "--output", str(whole)])
    labels = {int(load_data("digits").train[i][1]) for i in json.loads(whole.read_text())}
    assert len(labels) == 1
    return str(path)


def _counts(part) -> tuple[int, int]:
    """How many samples are of class 3, and how many are not."""
    threes = [int(label) == 3 for _, label in part]
    return sum(threes), len(threes) - sum(threes)


def test_a_classifier_forgets_from_the_command_line(weights, tmp_path, capsys):
    command = ["classify", *SMALL, "--classifier.weights", weights]
    command += ["--forget", "class:3", "--method", "bias_suppression"]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "forget accuracy" in capsys.readouterr().out
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"erasure.json", "deltas.safetensors", "report.json", "gaps.png"} <= written
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["unlearned"]["forget_accuracy"] == 0.0
    data = load_data("digits")
    three, others = zip(*(_counts(part) for part in (data.train, data.test)), strict=True)
    wanted = dict(zip(("forget", "forgotten_class_test"), three, strict=True))
    assert report["n"] == wanted | dict(zip(("retain", "test"), others, strict=True))
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.index("Protocol: model shufflenet") < card.index("the protocol above")
    other = ["--method", "cf_k", "--output", str(tmp_path / "out")]
    assert main([*command, *other]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_a_setting_is_found_from_the_command_line(tmp_path, capsys):
    command = ["calibrate", *SMALL, "--forget", "random:0.1", "--method", "ssd"]
    command += ["--ssd.weigh", "batches"]  # in one pass each
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "ssd: selection" in said
    assert "use --ssd.selection" in said
    assert main([*command, "--share", "2"]) == 2
    assert "share is 2" in capsys.readouterr().err


def test_shadow_models_attack_the_unlearned_one(weights, tmp_path, capsys):
    command = ["classify", *SMALL, "--classifier.weights", weights, "--forget", "random:0.1"]
    command += ["--method", "cf_k", "--cf_k.training.max_train_steps", "2"]
    command += ["--output", str(tmp_path / "out")]
    assert main([*command, "--shadows", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err
    assert main([*command, "--shadows", "2"]) == 0
    assert "U-LiRA, 2 shadows a side" in (tmp_path / "out" / "report.md").read_text()
    found = json.loads((tmp_path / "out" / "report.json").read_text())["u_lira"]
    assert 0 <= found["auc"] <= 1
    assert found["n"] == 134


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--forget", "class:x"], "write class:3"),
        (["--forget", "class:99"], "holds 0 of 1347"),
        (["--forget", "random:1"], "is no share"),
        (["--forget", "random:-0.1"], "is no share"),
        (["--forget", "class:3", "--classifier.weights", "missing/w.safetensors"], "is not there"),
        (["--forget", "missing.json"], "no list of indices"),
        (["--forget", "class:3", "--classifier.data", "cifar10"], "files of cifar10"),
        (["--forget", "class:3", "--classifier.model", "nothing"], "no model 'nothing'"),
        (["--forget", "class:3", "--classifier.model", "vgg11"], "cannot read pictures of 8"),
    ],
)
def test_bad_input_gets_one_sentence(arguments, reason, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["classify", *arguments, "--output", str(output)]) == 2
    assert reason in capsys.readouterr().err
    assert not output.exists()


def test_an_original_depends_on_its_seed_alone_and_the_process_keeps_its_own():
    config, data = ClassifierConfig(fit=FitConfig(epochs=1)), load_data("digits")
    config = dataclasses.replace(config, model="shufflenet_v2_x0_5")
    before, models = torch.get_rng_state(), []
    for _ in range(2):
        models.append(load_or_train(config, data).state_dict())
        torch.rand(1)
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    torch.set_rng_state(before)
    load_or_train(config, data)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_fitted_classifier_depends_on_the_seed_alone():
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        runs.append(fit(model, digits(), FitConfig(epochs=1)).state_dict())
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
