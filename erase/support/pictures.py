"""Reading pictures as they are shown, and writing them."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.utils import make_grid

from erase.support.errors import refused
from erase.support.files import expanded, in_order, require_file

KINDS = (*IMG_EXTENSIONS, ".avif", ".gif", ".jfif")
MOST_PIXELS, ROWS = 50_000_000, 128  # of a picture, and of it at a time
WHITE = (255, 255, 255, 255)


def save_grid(pictures: Tensor, path: Path, columns: int) -> None:
    """Write float pictures [N, 3, H, W] in 0..1 as one PNG, row by row."""
    grid = make_grid(pictures.clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)
    as_images(grid[None])[0].save(path)


def as_images(pictures: Tensor) -> list[Image.Image]:
    """Float pictures [N, 3, H, W] in 0..1 as they would be saved, in 8 bits."""
    arrays = (pictures.clamp(0, 1) * 255).round().byte().cpu().permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(array) for array in arrays]


def open_picture(path: str | Path) -> Image.Image:
    """A picture in RGB as it is shown: turned as its EXIF data says, on white where transparent.

    Raises ValueError for what cannot be read and what is too large to be a picture.
    """
    with refused(f"The picture {path} cannot be read", "mend or remove it"):
        require_file(Path(path))
        with Image.open(path) as stored:
            if stored.width * stored.height > MOST_PIXELS:
                raise ValueError(f"it is of {stored.width} x {stored.height} pixels")
            ImageOps.exif_transpose(stored, in_place=True)
            return _in_rgb(stored) if stored.height <= ROWS else _in_strips(stored)


def _in_strips(picture: Image.Image) -> Image.Image:
    """As `_in_rgb`, in the memory of two pictures."""
    whole = Image.new("RGB", picture.size)
    for top in range(0, picture.height, ROWS):
        strip = (0, top, picture.width, min(top + ROWS, picture.height))
        whole.paste(_in_rgb(picture.crop(strip)), strip)
    return whole


def _in_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which Pillow's own conversion cuts off
        deep = np.asarray(picture).astype(np.float64)
        picture = Image.fromarray((deep.clip(0, 65535) / 257).round().astype(np.uint8))
    if picture.has_transparency_data:
        shown = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", shown.size, WHITE), shown)
    return picture.convert("RGB")


class Pictures(Sequence[Image.Image]):
    """Pictures in RGB, read when they are looked at."""

    def __init__(self, paths: Sequence[Path]):
        self._paths = list(paths)

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Image.Image: ...

    @overload
    def __getitem__(self, index: slice) -> "Pictures": ...

    def __getitem__(self, index: int | slice) -> "Image.Image | Pictures":
        if isinstance(index, slice):
            return Pictures(self._paths[index])
        return open_picture(self._paths[index])


def load_folder(folder: Path) -> Pictures:
    """All pictures of a folder, by name; ValueError if there are none or one is broken.

    Numbers in names count as numbers: 2.png comes before 10.png. Hidden files are left out.
    """
    folder = expanded(folder)
    names = [path.name for path in folder.glob("*") if is_picture(path)]
    if not names:
        raise ValueError(f"{folder} holds no pictures; name a folder of PNG or JPEG files.")
    pictures = Pictures([folder / name for name in in_order(names)])
    for _ in pictures:  # one that is broken is told before any work
        pass
    return pictures


def is_picture(path: str | Path) -> bool:
    """Whether the name is that of a picture which is not hidden."""
    path = Path(path)
    return path.suffix.lower() in KINDS and not path.name.startswith(".")
