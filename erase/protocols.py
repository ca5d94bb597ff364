"""Published protocols: prompts from a file, drawn as the protocol says, then measured."""

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from erase.catalogue import Sampling
from erase.checks import require_positive
from erase.erasure import Erasure
from erase.evaluate.accuracy import Accuracy
from erase.evaluate.base import Evaluator
from erase.evaluate.classifier_judge import open_judge
from erase.evaluate.clip import ClipJudge
from erase.evaluate.folders import Captions
from erase.evaluation_runner import REPORT, PictureEvaluation, evaluators_of, measured
from erase.files import check_writable, replaced_folder
from erase.models import Model, load_model
from erase.sampling import draw

HUB = "hf://"


@dataclass(frozen=True)
class PromptFile:
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
    limit: int = 0


@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn.

    Args:
        scheduler: a scheduler class of diffusers; empty keeps the model's.
        steps: sampling steps.
        guidance_scale: for prompts without their own.
    """

    scheduler: str = ""
    steps: int = 50
    guidance_scale: float = 7.5

    def __post_init__(self) -> None:
        require_positive(self, "steps", "guidance_scale")


@dataclass(frozen=True)
class Protocol:
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
    drawing: Drawing = field(default_factory=Drawing)
    evaluation: PictureEvaluation = field(default_factory=PictureEvaluation)
    erased_groups: Sequence[str] = ()
    kept_groups: Sequence[str] = ()
    clip_score: bool = False
    quirks: Sequence[str] = ()
    device: str = "cpu"


@dataclass(frozen=True)
class Asked:
    """One picture to draw, what it is to show, and which group it counts for."""

    text: str
    seed: int
    guidance_scale: float
    label: str = ""
    group: str = ""


def run_protocol(protocol: Protocol, output: str | Path) -> dict[str, Any]:
    """Draw and measure; writes the pictures, prompts.json and evaluation.json.

    Raises ValueError on bad input, before any picture is drawn.
    """
    output = Path(output).resolve()
    check_writable(output)
    asked = read_prompts(protocol.prompts, protocol.drawing.guidance_scale)
    model = _with_scheduler(load_model(protocol.model, protocol.device), protocol.drawing)
    erasure = Erasure.from_pretrained(protocol.erasure) if protocol.erasure else None
    evaluators = _evaluators(protocol, asked)
    with erasure.apply(model.pipeline.components) if erasure else nullcontext():
        pictures = _drawn(model, asked, protocol.drawing.steps)
    with replaced_folder(output) as partial:
        shown = [to_pil_image(picture) for picture in pictures.clamp(0, 1)]
        (partial / "pictures").mkdir()
        for i, picture in enumerate(shown):
            picture.save(partial / "pictures" / f"{i:05}.png")
        lines = json.dumps([asdict(one) for one in asked], indent=1)
        (partial / "prompts.json").write_text(lines + "\n")
        report = {
            "protocol": asdict(protocol),
            "n": len(shown),
            "figures": measured(shown, evaluators, partial),
        }
        (partial / REPORT).write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return report


def read_prompts(file: PromptFile, guidance_scale: float) -> list[Asked]:
    """One entry for each picture; ValueError for a missing file or column."""
    rows = _rows(file)
    wanted = {name: getattr(file, name) for name in ("text", "seed", "guidance_scale", "label",
                                                     "group")}  # fmt: skip
    missing = [column for column in wanted.values() if column and column not in rows[0]]
    if missing:
        raise ValueError(
            f"{file.path} has no column {missing[0]}; it has {', '.join(rows[0])}. Name another."
        )

    def seeds_of(row: Mapping[str, str], position: int) -> Sequence[int]:
        return [int(row[file.seed])] if file.seed else file.seeds or [position]

    return [
        Asked(
            row[file.text],
            seed,
            float(row[file.guidance_scale]) if file.guidance_scale else guidance_scale,
            row[file.label] if file.label else "",
            row[file.group] if file.group else "",
        )
        for position, row in enumerate(rows)
        for seed in seeds_of(row, position)
    ]


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


def _with_scheduler(model: Model, drawing: Drawing) -> Model:
    if drawing.scheduler:
        scheduler = getattr(diffusers, drawing.scheduler, None)
        if scheduler is None:
            raise ValueError(f"diffusers has no {drawing.scheduler}; name one of its schedulers.")
        model.pipeline.scheduler = scheduler.from_config(model.pipeline.scheduler.config)
    return model


def _evaluators(protocol: Protocol, asked: Sequence[Asked]) -> list[Evaluator]:
    """Those of the evaluation, accuracy where prompts have labels, and CLIP score if wanted."""
    config, per_prompt = protocol.evaluation, bool(protocol.prompts.label or protocol.clip_score)
    if per_prompt and not config.judge:
        raise ValueError("Accuracy and CLIP score need a judge; name --evaluation.judge.")
    if protocol.prompts.label:
        config = replace(config, labels=())
    evaluators = evaluators_of(config, something_else=per_prompt)
    if protocol.prompts.label:
        evaluators.append(_accuracy(protocol, asked))
    if protocol.clip_score:
        evaluators.append(Captions(ClipJudge(config.judge), [one.text for one in asked]))
    return evaluators


def _accuracy(protocol: Protocol, asked: Sequence[Asked]) -> Accuracy:
    evaluation = protocol.evaluation
    return Accuracy(
        open_judge(evaluation.judge, evaluation.judge_classes),
        evaluation.labels or sorted({one.label for one in asked}),
        [one.label for one in asked],
        [one.group for one in asked],
        protocol.erased_groups,
        protocol.kept_groups,
    )


def _drawn(model: Model, asked: Sequence[Asked], steps: int) -> Tensor:
    """One picture each [N, 3, H, W], in order, those of one guidance scale together."""
    found: dict[int, Tensor] = {}
    for scale in sorted({one.guidance_scale for one in asked}):
        places = [i for i, one in enumerate(asked) if one.guidance_scale == scale]
        texts, seeds = [asked[i].text for i in places], [asked[i].seed for i in places]
        name = f"guidance {scale:g}"
        pictures = draw(model.pipeline, texts, seeds, Sampling(steps, scale), "pt", name)
        found |= dict(zip(places, pictures.float(), strict=True))
    return torch.stack([found[i] for i in range(len(asked))])
