"""Published protocols: prompts from a file, drawn as the protocol says, then measured."""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
from huggingface_hub import hf_hub_download
from torchvision.transforms.functional import to_pil_image

from erase.erasure.erasure import Erasure
from erase.evaluate.base import Evaluator, protocol_hash
from erase.evaluate.pictures.accuracy import Accuracy
from erase.evaluate.pictures.classifier_judge import Judge, open_judge
from erase.evaluate.pictures.folders import Captions
from erase.models.opening import Model, load_model
from erase.prompts.catalogue import Sampling
from erase.runs.evaluate import REPORT, PictureEvaluation, evaluators_of, measured
from erase.support.config import Config, NotNegative, Positive
from erase.support.files import check_writable, replaced_folder, write_json, write_text
from erase.support.pictures import load_folder
from erase.tasks.diffusion.sampling import draw

HUB, PICTURES, CHUNK = "hf://", "pictures", 256


@dataclass(frozen=True)
class PromptFile(Config):
    """Where prompts are and which columns say what.

    Args:
        path: a CSV file, or hf://OWNER/DATASET/FILE for one of the hub's data sets.
        text: the column of the prompts.
        seed: the column of each prompt's own seed.
        guidance_scale: the column of its own guidance scale.
        label: the column of what its picture is to show.
        group: the column by which accuracies are told apart, such as erased and kept.
        seeds: seeds that every prompt is drawn with, if they have none of their own; by default one
            seed a prompt from 0.
        limit: how many prompts of the file count, 0 for all.
    """

    path: str = ""
    text: str = "prompt"
    seed: str = ""
    guidance_scale: str = ""
    label: str = ""
    group: str = ""
    seeds: Sequence[int] = ()
    limit: NotNegative[int] = 0


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
    guidance_scale: Positive[float] = 7.5


@dataclass(frozen=True)
class BenchmarkProtocol(Config):
    """A protocol, and the model it is applied to.

    Args:
        model: emoji, a pipeline folder or a hub id.
        erasure: an erasure folder to apply, empty for the model as it is.
        prompts: what is asked.
        drawing: how it is drawn.
        evaluation: how it is measured; its labels are what the judge chooses among.
        erased_groups: groups whose accuracy should be low.
        kept_groups: groups whose accuracy should be high.
        clip_score: whether to score pictures against their own prompts.
        quirks: what is peculiar about the published numbers, for the report.
        device: cpu, cuda, mps.
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
    device: str = "cpu"


@dataclass(frozen=True)
class PromptRow:
    """One picture to draw, what it is to show, and which group it counts for."""

    text: str
    seed: int
    guidance_scale: float
    label: str = ""
    group: str = ""


def run_protocol(protocol: BenchmarkProtocol, output: str | Path) -> dict[str, Any]:
    """Draw and measure; writes the pictures, prompts.json and evaluation.json.

    Raises ValueError on bad input, before any picture is drawn.
    """
    output = Path(output).resolve()
    check_writable(output)
    asked = read_prompts(protocol.prompts, protocol.drawing.guidance_scale)
    model = _with_scheduler(load_model(protocol.model, protocol.device), protocol.drawing)
    erasure = Erasure.from_pretrained(protocol.erasure) if protocol.erasure else None
    evaluators = _evaluators(protocol, asked)
    with replaced_folder(output) as partial:
        with erasure.apply(model.pipeline.components) if erasure else nullcontext():
            _draw(model, asked, protocol.drawing.steps, partial / PICTURES)
        lines = json.dumps([asdict(one) for one in asked], indent=1)
        write_text(partial / "prompts.json", lines + "\n")
        report = {
            "protocol": asdict(protocol),
            "protocol_hash": protocol_hash({"protocol": asdict(protocol), "asked": lines}),
            "n": len(asked),
            "figures": measured(load_folder(partial / PICTURES), evaluators, partial),
        }
        write_json(partial / REPORT, report)
    return report


def read_prompts(file: PromptFile, guidance_scale: float) -> list[PromptRow]:
    """One entry for each picture; ValueError for a missing file or column."""
    rows = _rows(file)
    wanted = {name: getattr(file, name) for name in ("text", "seed", "guidance_scale", "label",
                                                     "group")}  # fmt: skip
    missing = [column for column in wanted.values() if column and column not in rows[0]]
    if missing:
        raise ValueError(
            f"{file.path} has no column {missing[0]}; it has {', '.join(rows[0])}. Name another."
        )

    try:
        return [
            one
            for position, row in enumerate(rows)
            for one in _asked(file, row, position, guidance_scale)
        ]
    except ValueError as error:
        raise ValueError(f"A seed or guidance scale of {file.path} is no number ({error}); mend "
                         "the file.") from error  # fmt: skip


def _asked(
    file: PromptFile, row: Mapping[str, str], position: int, guidance_scale: float
) -> list[PromptRow]:
    """One row's pictures, one a seed."""
    seeds = [int(row[file.seed])] if file.seed else file.seeds or [position]
    scale = float(row[file.guidance_scale]) if file.guidance_scale else guidance_scale
    label, group = (row[name] if name else "" for name in (file.label, file.group))
    return [PromptRow(row[file.text], seed, scale, label, group) for seed in seeds]


def _rows(file: PromptFile) -> list[dict[str, str]]:
    path = file.path
    try:
        if path.startswith(HUB):
            owner, name, inside = path.removeprefix(HUB).split("/", 2)
            path = hf_hub_download(f"{owner}/{name}", inside, repo_type="dataset")
        with open(path, newline="", encoding="utf-8") as opened:
            rows = list(csv.DictReader(opened))
    except Exception as error:
        raise ValueError(
            f"The prompts {file.path or '(none named)'} cannot be read ({error}); give "
            "--prompts.path a CSV file or hf://OWNER/DATASET/FILE."
        ) from error
    if not rows:
        raise ValueError(f"{file.path} holds no prompts; give a CSV file with a row a prompt.")
    return rows[: file.limit or None]


def _with_scheduler(model: Model, drawing: SamplingConfig) -> Model:
    if drawing.scheduler:
        scheduler = getattr(diffusers, drawing.scheduler, None)
        if scheduler is None:
            raise ValueError(f"diffusers has no {drawing.scheduler}; name one of its schedulers.")
        model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config)
    return model


def _evaluators(protocol: BenchmarkProtocol, asked: Sequence[PromptRow]) -> list[Evaluator]:
    """Those of the evaluation, accuracy where prompts have labels, and CLIP score if wanted."""
    config, has_labels = protocol.evaluation, bool(protocol.prompts.label)
    if (protocol.erased_groups or protocol.kept_groups) and not has_labels:
        raise ValueError("Groups need labels to be right about; name --prompts.label.")
    if not has_labels and not protocol.clip_score:
        return evaluators_of(config)
    if not config.judge:
        raise ValueError("Accuracy and CLIP score need a judge; name --evaluation.judge.")
    judge = open_judge(config.judge, config.judge_classes)
    evaluators: list[Evaluator] = []
    if has_labels:
        evaluators.append(_accuracy(protocol, asked, judge))
        config = replace(config, labels=())
    if protocol.clip_score:
        evaluators.append(Captions(judge, [one.text for one in asked]))
    return evaluators + evaluators_of(config, judge)


def _accuracy(protocol: BenchmarkProtocol, asked: Sequence[PromptRow], judge: Judge) -> Accuracy:
    return Accuracy(
        judge,
        protocol.evaluation.labels or sorted({one.label for one in asked}),
        [one.label for one in asked],
        [one.group for one in asked],
        protocol.erased_groups,
        protocol.kept_groups,
    )


def _draw(model: Model, asked: Sequence[PromptRow], steps: int, folder: Path) -> None:
    """Write one numbered PNG each, those of one guidance scale in turn, some at a time."""
    folder.mkdir()
    for scale in sorted({one.guidance_scale for one in asked}):
        places = [i for i, one in enumerate(asked) if one.guidance_scale == scale]
        for start in range(0, len(places), CHUNK):
            part = places[start : start + CHUNK]
            texts, seeds = [asked[i].text for i in part], [asked[i].seed for i in part]
            name = f"guidance {scale:g}, {start} of {len(places)}"
            pictures = draw(model.pipeline, texts, seeds, Sampling(steps, scale), "pt", name)
            for i, picture in zip(part, pictures.float().clamp(0, 1), strict=True):
                to_pil_image(picture).save(folder / f"{i:06}.png")
