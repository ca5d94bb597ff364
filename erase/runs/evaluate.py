"""Measuring pictures: a folder's, whoever drew them, or what a published protocol draws."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field, make_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
from diffusers import SchedulerMixin
from PIL.Image import Image

from erase.erasure.erasure import Erasure
from erase.evaluate.base import (
    EVALUATORS,
    Evaluator,
    Judge,
    Measurement,
    OpenJudge,
    evaluators_of,
    measured,
    protocol_hash,
)
from erase.evaluate.pictures.folders import (
    CaptionsConfig,
    FidelityConfig,
    LabelsConfig,
    PerceptualConfig,
    accuracy,
    clip_score,
)
from erase.evaluate.pictures.judges import open_judge
from erase.evaluate.pictures.nudity import DETECTIONS, NudityConfig, count, read_detections
from erase.models.opening import Model, OpeningConfig, find_model
from erase.runs.drawing import PromptFile, PromptRow, draw_rows, drawing_digest, read_prompts
from erase.runs.state import carry_out
from erase.support.config import Config, NotNegative, Positive
from erase.support.distributed import all_gather, launched, own_device
from erase.support.files import write_json, write_text
from erase.support.pictures import Pictures, load_folder
from erase.tasks.diffusion.noising import settings_of
from erase.training.checkpoint import checkpoint_folder

PICTURES, REPORT = "pictures", "evaluation.json"
ToMeasure = tuple[Sequence[Image], list[Evaluator]]


@dataclass(frozen=True)
class PictureEvaluation(
    NudityConfig, PerceptualConfig, FidelityConfig, CaptionsConfig, LabelsConfig
):
    """What to measure of a folder of pictures.

    Args:
        judge: an open_clip name or local-dir:FOLDER, for labels, captions and reference; also
            timm/NAME, torchvision/NAME or transformers/NAME, if its classes are the labels.
        judge_classes: the classes of a classifier's own weights, in order; ImageNet's by default.
    """

    judge: str = ""
    judge_classes: Sequence[str] = ()


@dataclass(frozen=True)
class SamplingConfig(Config):
    """How pictures are drawn.

    Args:
        scheduler: a scheduler class of diffusers; empty keeps the model's.
        steps: sampling steps.
        guidance_scale: for prompts without their own.
    """

    scheduler: str = ""
    steps: Positive[int] = 50
    guidance_scale: NotNegative[float] = 7.5


@dataclass(frozen=True)
class BenchmarkProtocol(OpeningConfig):
    """A protocol, and the model it is applied to.

    Args:
        model: emoji, a pipeline folder, a hub id or a file of weights.
        erasure: an erasure folder to apply, empty for the model as it is.
        prompts: what is asked.
        drawing: how it is drawn.
        evaluation: how it is measured; its labels are what the judge chooses among.
        erased_groups: groups whose accuracy should be low.
        kept_groups: groups whose accuracy should be high.
        clip_score: whether to score pictures against their own prompts.
        quirks: what is peculiar about the published numbers, for the report.
    """

    model: str = "emoji"
    erasure: str = ""
    prompts: PromptFile = field(default_factory=PromptFile)
    drawing: SamplingConfig = field(default_factory=SamplingConfig)
    evaluation: PictureEvaluation = field(default_factory=PictureEvaluation)
    erased_groups: Sequence[str] = ()
    kept_groups: Sequence[str] = ()
    clip_score: bool = False
    quirks: Sequence[str] = ()


def evaluation_config() -> type[PictureEvaluation]:
    """PictureEvaluation, with the fields of evaluators that other packages registered."""
    kinds = [kind.config for kind in EVALUATORS.all().values()]
    others = [kind for kind in kinds if not issubclass(PictureEvaluation, kind)]
    if not others:
        return PictureEvaluation
    return make_dataclass(
        PictureEvaluation.__name__, (), bases=(PictureEvaluation, *others), frozen=True
    )


def evaluate(
    pictures: str | Path, config: PictureEvaluation, output: str | Path, device: str = "auto"
) -> dict[str, Any]:
    """Measure the pictures on a device; writes evaluation.json with the protocol of every figure.

    Of several processes the first returns the report, the others an empty one. Raises ValueError on
    bad input, before any work.
    """

    def open_() -> ToMeasure:
        shown = load_folder(Path(pictures))
        judge = shared_judge(config, device=own_device(device))
        return shown, require_fit(evaluators_of(config, judge), len(shown))

    def write(opened: ToMeasure, _: None, folder: Path) -> dict[str, Any]:
        shown, evaluators = opened
        figures = measured(shown, evaluators, folder)
        report = {"pictures": str(pictures), "n": len(shown), "figures": figures}
        write_json(folder / REPORT, report)
        return report

    return carry_out(output, (), open_, lambda *_: None, write, shares_write=True) or {}


def rescore(folder: str | Path, threshold: float, classes: Sequence[str]) -> dict[str, Any]:
    """Count the detections that an evaluation kept again, under another threshold or classes."""
    return count(read_detections(Path(folder) / DETECTIONS), threshold, classes)


def require_fit(evaluators: list[Evaluator], count: int) -> list[Evaluator]:
    """The evaluators; ValueError if there are none, or one has no figures of so many pictures."""
    if not evaluators:
        raise ValueError("Nothing is to be measured; give labels, captions, reference, partners or "
                         "nudity.")  # fmt: skip
    for one in evaluators:
        if isinstance(one, Measurement):
            one.require(count)
    return evaluators


def shared_judge(
    config: PictureEvaluation, flag: str = "--judge", device: str = "cpu"
) -> OpenJudge:
    """What opens the config's judge, once; it raises ValueError if the config names none."""

    @cache
    def judge() -> Judge:
        if not config.judge:
            raise ValueError("Labels, captions and distances need a judge; name one, e.g. "
                             f"{flag} ViT-B-32-quickgelu/openai.")  # fmt: skip
        return open_judge(config.judge, config.judge_classes, device=device)

    return OpenJudge(judge, device)


@dataclass(frozen=True)
class OpenedProtocol:
    """What a protocol is carried out with."""

    rows: Sequence[PromptRow]
    model: Model
    erasure: Erasure | None
    evaluators: Sequence[Evaluator]

    def applied(self) -> AbstractContextManager[Any]:
        """While in force, the erasure is applied, if there is one."""
        components = self.model.pipeline.components
        return self.erasure.apply(components) if self.erasure else nullcontext()


def run_protocol(protocol: BenchmarkProtocol, output: str | Path) -> dict[str, Any]:
    """Draw and measure; writes the pictures, prompts.json and evaluation.json.

    Every picture that is drawn is kept beside `output` until all is whole, so that an interrupted
    protocol goes on where it stopped. Processes share the drawing and the judging; the first
    returns the report, the others an empty one. Raises ValueError on bad input, before any picture
    is drawn.
    """

    def open_() -> OpenedProtocol:
        rows = read_prompts(protocol.prompts, protocol.drawing.guidance_scale)
        name = protocol.drawing.scheduler
        kind = getattr(diffusers, name, None)
        if name and not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
            raise ValueError(f"diffusers has no {name} here; name one of its schedulers.")
        found = find_model(protocol.model, protocol)
        evaluators = require_fit(_evaluators(protocol, rows, found.device), len(rows))
        erasure = Erasure.from_pretrained(protocol.erasure) if protocol.erasure else None
        model = found.open()
        if kind:
            settings = settings_of(model.pipeline.scheduler)
            model.pipeline.scheduler = kind.from_config(settings)
        return OpenedProtocol(rows, model, erasure, evaluators)

    def work(opened: OpenedProtocol) -> list[Path]:
        kept = (checkpoint_folder() or Path()) / PICTURES
        kept.mkdir(parents=True, exist_ok=True)
        paths = [kept / f"{i:06}.png" for i in range(len(opened.rows))]
        with opened.applied():
            draw_rows(opened.model, opened.rows, protocol.drawing.steps, paths)
        return paths

    def write(opened: OpenedProtocol, drawn: list[Path], folder: Path) -> dict[str, Any]:
        lines = json.dumps([asdict(row) for row in opened.rows], indent=1)
        write_text(folder / "prompts.json", lines + "\n")
        report = {
            "protocol": asdict(protocol),
            "protocol_hash": protocol_hash({"protocol": asdict(protocol), "asked": lines}),
            "n": len(opened.rows),
            "figures": measured(Pictures(drawn), opened.evaluators, folder),
        }
        write_json(folder / REPORT, report)
        all_gather(None)  # nobody looks at them any more
        if launched().is_main_process:
            drawn[0].parent.rename(folder / PICTURES)
        return report

    def digest_of(opened: OpenedProtocol) -> str:
        with opened.applied():
            return drawing_digest(opened.model, opened.rows, protocol.drawing.steps)

    return carry_out(output, (), open_, work, write, digest_of, shares_write=True) or {}


def _evaluators(
    protocol: BenchmarkProtocol, rows: Sequence[PromptRow], device: str
) -> list[Evaluator]:
    """Accuracy where prompts have labels, CLIP score if wanted, and those of the evaluation."""
    config = protocol.evaluation
    found: list[Evaluator] = []
    judge = shared_judge(config, "--evaluation.judge", device)
    if protocol.prompts.label:
        found.append(
            accuracy(
                judge(),
                config.labels or sorted({row.label for row in rows}),
                [row.label for row in rows],
                [row.group for row in rows],
                protocol.erased_groups,
                protocol.kept_groups,
            )
        )
        config = replace(config, labels=())
    elif protocol.erased_groups or protocol.kept_groups:
        raise ValueError("Groups need labels to be right about; name --prompts.label.")
    if protocol.clip_score:
        found.append(clip_score(judge(), [row.text for row in rows]))
    return found + evaluators_of(config, judge)
