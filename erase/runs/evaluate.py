"""Measuring folders of pictures, whoever drew them, and counting kept detections again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from erase.evaluate.base import Evaluator, protocol_hash
from erase.evaluate.pictures.classifier_judge import Judge, open_judge
from erase.evaluate.pictures.folders import DETECTIONS, Captions, Fidelity, Labels, Nudity
from erase.evaluate.pictures.nudity import EXPOSED, count, read_detections
from erase.evaluate.pictures.perceptual import Backbone, Perceptual
from erase.support.config import Config
from erase.support.files import check_writable, replaced_folder, write_json
from erase.support.pictures import load_folder

REPORT = "evaluation.json"


@dataclass(frozen=True)
class PictureEvaluation(Config):
    """What to measure of a folder of pictures.

    Args:
        labels: what a judge chooses among for every picture.
        captions: a text file with a caption a line, in the order of the pictures' names.
        reference: a folder of pictures to take the distance to.
        partners: a folder of the same prompts' pictures from another model, for LPIPS.
        backbone: LPIPS' own.
        judge: an open_clip name or local-dir:FOLDER, for labels, captions and reference; also
            timm/NAME, torchvision/NAME or transformers/NAME, if its classes are the labels.
        judge_classes: the classes of a classifier's own weights, in order; ImageNet's by default.
        nudity: whether to run NudeNet.
        threshold: the score from which its detections count.
        classes: which of its classes count.
    """

    labels: Sequence[str] = ()
    captions: str = ""
    reference: str = ""
    partners: str = ""
    backbone: Backbone = "alex"
    judge: str = ""
    judge_classes: Sequence[str] = ()
    nudity: bool = False
    threshold: float = 0.6
    classes: Sequence[str] = EXPOSED


def evaluate(pictures: str | Path, config: PictureEvaluation, output: str | Path) -> dict[str, Any]:
    """Measure the pictures and write evaluation.json with the protocol of every figure.

    Raises ValueError on bad input, before any work.
    """
    output = Path(output).resolve()
    check_writable(output)
    shown = load_folder(Path(pictures))
    evaluators = evaluators_of(config)
    report: dict[str, Any] = {"pictures": str(pictures), "n": len(shown)}
    with replaced_folder(output) as partial:
        report["figures"] = measured(shown, evaluators, partial)
        write_json(partial / REPORT, report)
    return report


def measured(
    pictures: Sequence[Image], evaluators: Sequence[Evaluator], folder: Path
) -> dict[str, Any]:
    """Every evaluator's figures, its protocol and the protocol's hash."""
    figures = {}
    for evaluator in evaluators:
        protocol = evaluator.protocol()
        hashed = {"protocol": protocol, "protocol_hash": protocol_hash(protocol)}
        figures[evaluator.name] = hashed | evaluator.figures(pictures, folder)
    return figures


def rescore(folder: str | Path, threshold: float, classes: Sequence[str]) -> dict[str, Any]:
    """Count the detections that an evaluation kept again, under another threshold or classes."""
    return count(read_detections(Path(folder) / DETECTIONS), threshold, classes)


def evaluators_of(config: PictureEvaluation, judge: Judge | None = None) -> list[Evaluator]:
    """What the config asks for; ValueError if it lacks a judge, or is nothing.

    With a judge that is open already and at other work it may be nothing.
    """
    needs_judge = bool(config.labels or config.captions or config.reference)
    if needs_judge and not config.judge:
        raise ValueError("Labels, captions and distances need a judge; name one, e.g. "
                         "--judge ViT-B-32/openai.")  # fmt: skip
    if not (needs_judge or config.partners or config.nudity or judge):
        raise ValueError("Nothing is to be measured; give labels, captions, reference, partners or "
                         "nudity.")  # fmt: skip
    if needs_judge:
        judge = judge or open_judge(config.judge, config.judge_classes)
    evaluators: list[Evaluator] = []
    if config.labels:
        evaluators.append(Labels(judge, config.labels))
    if config.captions:
        captions = Path(config.captions).read_text(encoding="utf-8").splitlines()
        evaluators.append(Captions(judge, captions))
    if config.reference:
        evaluators.append(Fidelity(judge, load_folder(Path(config.reference))))
    if config.partners:
        evaluators.append(Perceptual(load_folder(Path(config.partners)), config.backbone))
    if config.nudity:
        evaluators.append(Nudity(config.threshold, config.classes))
    return evaluators
