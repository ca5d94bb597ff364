"""Prompts from a CSV file, each with what a picture of it is drawn with and is to show."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from huggingface_hub import hf_hub_download

from erase.support.config import Config, NotNegative
from erase.support.errors import cut, refused
from erase.support.files import expanded, read_text

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
    missing = [column for column in wanted if column and column not in rows[0]]
    if missing:
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
