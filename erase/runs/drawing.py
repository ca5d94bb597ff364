"""What a protocol asks, and its pictures: each is drawn once, however often it is stopped."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from erase.core.fingerprint import module_fingerprint
from erase.evaluate.base import protocol_hash
from erase.models.opening import Model
from erase.prompts.catalogue import Sampling
from erase.support.config import Config, NotNegative
from erase.support.distributed import all_gather, shard_of
from erase.support.errors import cut, refused
from erase.support.files import expanded, read_text, replaced_file
from erase.support.pictures import as_images, open_picture
from erase.support.progress import Bar
from erase.tasks.diffusion.noising import settings_of
from erase.tasks.diffusion.sampling import at_once, draw

HUB = "hf://"


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
class PromptRow:
    """One picture to draw, what it is to show, and which group it counts for."""

    text: str
    seed: int
    guidance_scale: float
    label: str = ""
    group: str = ""


def read_prompts(file: PromptFile, guidance_scale: float) -> list[PromptRow]:
    """One entry for each picture; ValueError for a missing file or column, or what is no number."""
    rows = _rows(file)
    wanted = (file.text, file.seed, file.guidance_scale, file.label, file.group)
    if missing := [column for column in wanted if column and column not in rows[0]]:
        known = cut(", ".join(map(str, rows[0])))
        raise ValueError(f"{file.path} has no column {missing[0]}; it has {known}; name another.")
    pictures = [_asked(file, row, i, guidance_scale) for i, row in enumerate(rows)]
    return [picture for of_row in pictures for picture in of_row]


def _asked(
    file: PromptFile, row: Mapping[str, str], position: int, guidance_scale: float
) -> list[PromptRow]:
    """One row's pictures, one a seed."""
    where = f"row {position + 1} of {file.path}"
    if None in row or None in row.values():
        raise ValueError(f"The {where} has more or fewer fields than columns; mend the file.")
    with refused(f"A seed or guidance scale of {where} is no number to draw with", "mend it"):
        seeds = [int(row[file.seed])] if file.seed else file.seeds or [position]
        scale = float(row[file.guidance_scale]) if file.guidance_scale else guidance_scale
        if not 0 <= scale < math.inf:
            raise ValueError(f"guidance {scale}")
    label, group = (row[name] if name else "" for name in (file.label, file.group))
    return [PromptRow(row[file.text], seed, scale, label, group) for seed in seeds]


def _rows(file: PromptFile) -> list[dict[str, str]]:
    path, mend = file.path, "give --prompts.path a CSV file or hf://OWNER/DATASET/FILE"
    with refused(f"The prompts {path or '(none named)'} cannot be read", mend):
        if path.startswith(HUB):
            owner, name, inside = path.removeprefix(HUB).split("/", 2)
            path = hf_hub_download(f"{owner}/{name}", inside, repo_type="dataset")
        text = read_text(expanded(path), newline="")
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    if not rows:
        raise ValueError(f"{file.path} holds no prompts; give a CSV file with a row a prompt.")
    return rows[: file.limit or None]


def drawing_digest(model: Model, rows: Sequence[PromptRow], steps: int) -> str:
    """What tells these pictures, of the model as it is now, from any others."""
    pipeline, scheduler = model.pipeline, model.pipeline.scheduler
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    return protocol_hash(
        {
            "asked": [asdict(row) for row in rows],
            "steps": steps,
            "weights": [module_fingerprint(module) for module in modules],
            "computed": [str(pipeline.dtype), torch.device(model.device).type],
            "scheduler": [type(scheduler).__name__, str(sorted(settings_of(scheduler).items()))],
            "version": version("diffusers-erase"),
        }
    )


def draw_rows(model: Model, rows: Sequence[PromptRow], steps: int, paths: Sequence[Path]) -> None:
    """Write a PNG each, but for those that lie there already; each process draws its share.

    Whoever draws a picture, the same ones are drawn with it, for they decide its last bits.
    """
    with model.drawing() as pipeline:
        parts = list(shard_of(_drawn_together(rows, at_once(pipeline))))
        with Bar(total=len(parts), desc="pictures of the protocol", unit="batch") as bar:
            for part in parts:
                if not all(_lies_whole(paths[i]) for i in part):
                    texts, seeds = [rows[i].text for i in part], [rows[i].seed for i in part]
                    sampling = Sampling(steps, rows[part[0]].guidance_scale)
                    pictures = draw(pipeline, texts, seeds, sampling).float().clamp(0, 1)
                    for i, picture in zip(part, pictures, strict=True):
                        _save(picture, paths[i])
                bar.update()
    all_gather(None)  # those of all processes lie there


def _lies_whole(path: Path) -> bool:
    """Whether a picture is there that can be read."""
    try:
        return bool(open_picture(path))
    except ValueError:
        return False


def _save(picture: Tensor, path: Path) -> None:
    """Write a PNG, whole or not at all."""
    with replaced_file(path) as partial:
        as_images(picture[None])[0].save(partial, format="PNG")


def _drawn_together(rows: Sequence[PromptRow], count: int) -> list[list[int]]:
    """The places of so many rows of one guidance scale at a time."""
    parts: list[list[int]] = []
    for scale in sorted({row.guidance_scale for row in rows}):
        places = [i for i, row in enumerate(rows) if row.guidance_scale == scale]
        parts += [places[start : start + count] for start in range(0, len(places), count)]
    return parts
