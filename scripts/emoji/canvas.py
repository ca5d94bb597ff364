"""EmojiCanvas: 142 objects drawn by people in 8 styles, composed into small captioned pictures."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from erase.bundled import FOLDER
from erase.prompts.catalogue import article, fill

PICTURE_SIZE = 64
BACKGROUNDS = {
    "white": (255, 255, 255),
    "yellow": (255, 226, 110),
    "blue": (150, 196, 255),
    "green": (156, 222, 150),
    "pink": (255, 182, 206),
    "orange": (255, 190, 110),
    "purple": (198, 170, 244),
    "gray": (190, 190, 190),
}
TEMPLATES = ("{a} {object} in {style} style", "{a_style} {style} style {object}")
OBJECT_TEMPLATES = ("{object}", "{a} {object}", "a picture of {a} {object}")


@dataclass(frozen=True)
class Cell:
    """One drawing of the canvas: an object in a style."""

    object: str
    style: str


@dataclass(frozen=True)
class Placement:
    """How cells lie on the picture: scale (1 fills it), shift (half-widths), RGB background."""

    scale: Tensor  # [N]
    shift: Tensor  # [N, 2]
    background: Tensor  # [N, 3]


class EmojiCanvas:
    """The atlas in memory; `cells` are ordered object by object, style by style."""

    def __init__(self, objects: Sequence[str] | None = None, styles: Sequence[str] | None = None):
        record = json.loads((FOLDER / "data" / "emoji_atlas.json").read_text(encoding="utf-8"))
        names = [entry["name"] for entry in record["objects"]]
        self.objects = list(objects or names)
        self.styles = list(styles or record["styles"])
        self.synonyms = {entry["name"]: entry["synonyms"] for entry in record["objects"]}
        self.core_objects = [entry["name"] for entry in record["objects"] if entry["core"]]
        self.cells = [Cell(o, s) for o in self.objects for s in self.styles]
        rows = [names.index(o) for o in self.objects]
        columns = [list(record["styles"]).index(s) for s in self.styles]
        self._rgba = _load_atlas(record["cell"])[rows][:, columns].flatten(0, 1)

    def __len__(self) -> int:
        return len(self.cells)

    def render(self, indices: Tensor, placement: Placement, size: int = PICTURE_SIZE) -> Tensor:
        """Compose cells [N] on their backgrounds: float pictures [N, 3, size, size] in 0..1."""
        premultiplied = self._rgba[indices].float() / 255
        premultiplied[:, :3] *= premultiplied[:, 3:]
        theta = torch.zeros(len(indices), 2, 3)
        theta[:, 0, 0] = theta[:, 1, 1] = 1 / placement.scale
        theta[:, :, 2] = -placement.shift / placement.scale[:, None]
        grid = F.affine_grid(theta, [len(indices), 4, size, size], align_corners=False)
        placed = F.grid_sample(premultiplied, grid, align_corners=False)
        return placed[:, :3] + (1 - placed[:, 3:]) * placement.background[:, :, None, None]


@cache
def _load_atlas(cell: int) -> Tensor:
    """The atlas as uint8 [objects, styles, 4, cell, cell]."""
    picture = np.asarray(Image.open(FOLDER / "data" / "emoji_atlas.webp").convert("RGBA"))
    rows, columns = picture.shape[0] // cell, picture.shape[1] // cell
    tiles = torch.from_numpy(picture.copy()).reshape(rows, cell, columns, cell, 4)
    return tiles.permute(0, 2, 4, 1, 3).contiguous()


def caption(cell: Cell, template: str, background: str = "white") -> str:
    """Fill one of TEMPLATES or OBJECT_TEMPLATES; a white background goes unnamed."""
    text = fill(template, cell.object, cell.style)
    if background == "white":
        return text
    return f"{text} on {article(background)} {background} background"


def random_placement(
    count: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.84, 1.0),
    shift: float = 0.08,
) -> tuple[Placement, list[str]]:
    """Draw small scales and shifts and a named background (half of them white) for each picture."""
    low, high = scale
    names = list(BACKGROUNDS)
    coloured = torch.rand(count, generator=generator) < 0.5
    picks = torch.randint(1, len(names), (count,), generator=generator) * coloured
    rgb = torch.tensor(list(BACKGROUNDS.values())).float() / 255
    placement = Placement(
        scale=low + (high - low) * torch.rand(count, generator=generator),
        shift=shift * (2 * torch.rand(count, 2, generator=generator) - 1),
        background=rgb[picks],
    )
    return placement, [names[i] for i in picks.tolist()]


def random_caption(cell: Cell, background: str, synonyms: Sequence[str], rng: random.Random) -> str:
    """A training caption: object and style (80 %), object alone (20 %); 1 in 5 uses a synonym."""
    template = rng.choice(TEMPLATES if rng.random() < 0.8 else OBJECT_TEMPLATES)
    if synonyms and rng.random() < 0.2:
        cell = Cell(rng.choice(synonyms), cell.style)
    return caption(cell, template, background)
