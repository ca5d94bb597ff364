import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
from diffusers import DiffusionPipeline
from hosts import CATALOGUE, build_tiny_pipeline
from PIL import Image
from test_perceptual import keep_backbone

from erase.bundled import JUDGE
from erase.erasure.erasure import Erasure
from erase.evaluate.pictures import folders
from erase.evaluate.pictures.generation import EvaluationConfig
from erase.methods.uce import UCEConfig
from erase.prompts.request import EraseRequest
from erase.runs.attack import AttackRun, run_attacks
from erase.runs.calibrate import CalibrationRun, calibrated
from erase.runs.classify import ClassificationRun, ClassifierConfig, classify
from erase.runs.erase import RunConfig, run
from erase.runs.evaluate import (
    BenchmarkProtocol,
    PictureEvaluation,
    PromptFile,
    SamplingConfig,
    evaluate,
    run_protocol,
)
from erase.runs.forget_set import ForgetSetRun, choose_forget_set
from erase.support.progress import on_progress
from erase.training.config import TrainedConfig, TrainingConfig

DIGITS = ClassifierConfig()
JUDGED = {"judge": f"local-dir:{JUDGE}"}
NO_JUDGE = PictureEvaluation(judge="no-such-judge")
LENIENT = PictureEvaluation(nudity=True, threshold=0.1)
LOOKING = TrainedConfig(training=TrainingConfig(validation_steps=1))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A tiny model, erasures (one names no request), pictures, prompts and a full folder."""
    build_tiny_pipeline().save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "concepts.json").write_text(json.dumps(asdict(CATALOGUE)))
    recipe = {"base": {"model": str(tmp_path / "tiny")}, "method": "uce"}
    asked = asdict(EraseRequest(["ghost"]))
    Erasure({}, recipe | {"request": asked}).save_pretrained(tmp_path / "erasure")
    Erasure({}, recipe).save_pretrained(tmp_path / "nameless")
    pixart = recipe["base"] | {"family": "pixart"}
    Erasure({}, recipe | {"base": pixart, "request": asked}).save_pretrained(tmp_path / "of_pixart")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "pictures" / "0.png")
    (tmp_path / "prompts.csv").write_text("prompt,class\na ghost,ghost\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    return tmp_path


@pytest.fixture
def opened(place: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the models that a test has opened so far."""
    seen: list[str] = []

    def noted(open_: Callable, name: str, *arguments: object, **options: object) -> object:
        model = open_(name, *arguments, **options)
        seen.append(name)
        return model

    pipelines, judges = DiffusionPipeline.from_pretrained, open_clip.create_model_from_pretrained
    open_pipeline = lambda name, **options: noted(pipelines, name, **options)  # noqa: E731
    open_judge = lambda name, **options: noted(judges, name, **options)  # noqa: E731
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", open_pipeline)
    monkeypatch.setattr(open_clip, "create_model_from_pretrained", open_judge)
    return seen


def erasing(at: Path, output: str = "out", concept: str = "ghost", **options: object) -> None:
    run(RunConfig(EraseRequest([concept]), **{"model": str(at / "tiny")} | options), at / output)


def attacking(at: Path, output: str = "out", erasure: str = "erasure", **options: object) -> None:
    run_attacks(AttackRun(str(at / erasure), **options), at / output)


def classifying(at: Path, output: str = "out", forget: str = "class:3", **options: object) -> None:
    classify(ClassificationRun(**{"classifier": DIGITS, "forget": forget} | options), at / output)


def calibrating(at: Path, forget: str = "class:3", **options: object) -> None:
    calibrated(CalibrationRun(DIGITS, forget, **options))


def choosing(at: Path, output: str = "chosen.json", count: int = 9, **options: object) -> None:
    choose_forget_set(ForgetSetRun(classifier=DIGITS, count=count, **options), at / output)


def evaluating(at: Path, output: str = "out", pictures: str = "pictures", **asked: object) -> None:
    evaluate(at / pictures, PictureEvaluation(**asked), at / output)


def following(
    at: Path, output: str = "out", path: str = "prompts.csv", label: str = "", **options: object
) -> None:
    """A protocol."""
    prompts = PromptFile(str(at / path), label=label)
    model = {"model": str(at / "tiny")}
    run_protocol(BenchmarkProtocol(prompts=prompts, **model | options), at / output)


BAD = [
    (erasing, {"concept": "gohst"}, "did you mean ghost"),
    (erasing, {"method": "magic"}, "no method 'magic'"),
    (erasing, {"method": "ssd"}, "ssd needs a ClassificationTask"),
    (erasing, {"method_config": UCEConfig()}, "salun takes a SalUnConfig"),
    (erasing, {"model": "/nowhere/at/all"}, "could not be opened"),
    (erasing, {"judge": "no-such-judge"}, "could not be opened"),
    (erasing, {"oracle": "tiny", "evaluation": EvaluationConfig(2)}, "needs 3 pictures"),
    (erasing, {"output": "/proc/erased"}, "cannot be written"),
    (erasing, {"output": "full"}, "holds other things"),
    (classifying, {"forget": "class:99"}, "holds 0 of"),
    (classifying, {"forget": "random:2"}, "is no share"),
    (classifying, {"method": "magic"}, "no method 'magic'"),
    (classifying, {"method": "esd"}, "esd needs a DiffusionTask"),
    (classifying, {"method_config": UCEConfig()}, "salun takes a SalUnConfig"),
    (classifying, {"method": "finetune", "method_config": LOOKING}, "draws nothing"),
    (classifying, {"learning_rate": 0.0}, "learning_rate is 0"),
    (classifying, {"shadows": 1}, "at least 2"),
    (classifying, {"classifier": ClassifierConfig("magic")}, "no data set 'magic'"),
    (classifying, {"classifier": ClassifierConfig(model="magic")}, "no model 'magic'"),
    (classifying, {"classifier": ClassifierConfig(model="raft_small")}, "no model 'raft_small'"),
    (classifying, {"classifier": ClassifierConfig(model="squeezenet1_0")}, "no linear layer"),
    (classifying, {"classifier": ClassifierConfig(weights="/no/w")}, "is not there"),
    (classifying, {"classifier": ClassifierConfig(weights="/proc/w")}, "cannot be written"),
    (classifying, {"classifier": ClassifierConfig(weights="/proc")}, "cannot be written"),
    (classifying, {"output": "/proc/classified"}, "cannot be written"),
    (classifying, {"output": "full"}, "holds other things"),
    (attacking, {"attacks": ["magic"]}, "no attack 'magic'"),
    (attacking, {"attacks": "recall"}, "give a list"),
    (attacking, {"configs": {"magic": None}}, "no attack 'magic'"),
    (attacking, {"prompts": 0}, "prompts is 0"),
    (attacking, {"attacks": ["prefix"], "erasure": "of_pixart"}, "prefix cannot serve a PixArt"),
    (attacking, {"erasure": "full"}, "not a readable erasure"),
    (attacking, {"erasure": "nameless"}, "does not say what it forgets"),
    (attacking, {"judge": "no-such-judge"}, "could not be opened"),
    (attacking, {"model": "/nowhere/at/all"}, "could not be opened"),
    (attacking, {"output": "/proc/attacked"}, "cannot be written"),
    (attacking, {"output": "full"}, "holds other things"),
    (calibrating, {"forget": "class:99"}, "holds 0 of"),
    (calibrating, {"method": "esd"}, "esd needs a DiffusionTask"),
    (calibrating, {"method": "bias_suppression"}, "nothing to calibrate"),
    (calibrating, {"share": 2}, "share is 2"),
    (calibrating, {"method": "finetune", "method_config": LOOKING}, "draws nothing"),
    (choosing, {"count": 0}, "count is 0"),
    (choosing, {"count": 99_999}, "count is 99999"),
    (choosing, {"count": 10, "unit": "classes"}, "count is 10 of 10 classes"),
    (choosing, {"unit": "classes", "tail": "highest"}, "by the lowest loss"),
    (choosing, {"rounds": -1}, "rounds is -1"),
    (choosing, {"rounds": 1, "tail": "highest"}, "leave out rounds"),
    (choosing, {"method": "esd"}, "esd needs a DiffusionTask"),
    (choosing, {"output": "/proc/chosen.json"}, "cannot be written"),
    (choosing, {"output": "full"}, "cannot be written"),
    (choosing, {"output": "prompts.csv"}, "it is there already"),
    (evaluating, {}, "Nothing is to be measured"),
    (evaluating, {"pictures": "full", "labels": ["ghost"]}, "holds no pictures"),
    (evaluating, {"labels": ["ghost"]}, "need a judge"),
    (evaluating, {"labels": ["ghost"], "judge": "no-such-judge"}, "could not be opened"),
    (evaluating, {"labels": ["ghost"], "judge": "timm/nothing"}, "could not be opened"),
    (evaluating, {"captions": "none.txt", **JUDGED}, "none.txt cannot be read"),
    (evaluating, {"reference": "none", **JUDGED}, "holds no pictures"),
    (evaluating, {"partners": "none"}, "holds no pictures"),
    (evaluating, {"nudity": True, "threshold": 0.1}, "own cut"),
    (evaluating, {"labels": ["ghost"], "output": "/proc/evaluated"}, "cannot be written"),
    (evaluating, {"labels": ["ghost"], "output": "full"}, "holds other things"),
    (following, {}, "Nothing is to be measured"),
    (following, {"path": "none.csv"}, "cannot be read"),
    (following, {"label": "kind"}, "no column kind"),
    (following, {"label": "class"}, "need a judge"),
    (following, {"kept_groups": ["others"]}, "name --prompts.label"),
    (following, {"drawing": SamplingConfig("Magic")}, "has no Magic"),
    (following, {"drawing": SamplingConfig("UNet2DModel")}, "has no UNet2DModel"),
    (following, {"label": "class", "evaluation": NO_JUDGE}, "could not be opened"),
    (following, {"evaluation": LENIENT}, "own cut"),
    (following, {"output": "/proc/followed"}, "cannot be written"),
    (following, {"output": "full"}, "holds other things"),
]


@pytest.mark.parametrize(
    ("asked", "options", "reason"), BAD, ids=lambda part: getattr(part, "__name__", None)
)
def test_a_bad_request_opens_no_model_and_trains_no_classifier(
    place, opened, asked, options, reason
):
    before, trained = sorted(place.rglob("*")), []
    with on_progress(lambda *told: trained.append(told)), pytest.raises(ValueError, match=reason):
        asked(place, **options)
    assert not opened
    assert not trained
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize("asked", [evaluating, following])
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"captions": "two.txt"}, "1 pictures and 2 captions"),
        ({"partners": "two", "backbone": "squeeze"}, "1 pictures and their 2 partners"),
        ({"reference": "two"}, "1 and 2 pictures"),
    ],
)
def test_wrong_numbers_are_refused_before_any_picture_is_drawn_or_looked_at(
    place, opened, monkeypatch, asked, given, reason
):
    monkeypatch.setenv("TORCH_HOME", str(place))
    keep_backbone(place)
    (place / "two.txt").write_text("a ghost\na skull\n")
    (place / "two").mkdir()
    for i in range(2):
        Image.new("RGB", (8, 8)).save(place / "two" / f"{i}.png")
    looked_at, drawn = [], []
    monkeypatch.setattr(folders, "embedded", lambda *pictures: looked_at.append(pictures))
    given = {k: v if k == "backbone" else str(place / v) for k, v in given.items()}
    wanted = {"labels": ["ghost", "skull"], **JUDGED, **given}
    options = wanted if asked is evaluating else {"evaluation": PictureEvaluation(**wanted)}
    with on_progress(lambda *told: drawn.append(told)), pytest.raises(ValueError, match=reason):
        asked(place, **options)
    assert not looked_at
    assert not drawn
    assert str(place / "tiny") not in opened
    assert not (place / "out").exists()
