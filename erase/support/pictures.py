"""Reading and writing pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

from PIL import Image
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.utils import make_grid


def save_grid(pictures: Tensor, path: Path, columns: int) -> None:
    """Write float pictures [N, 3, H, W] in 0..1 as one PNG, row by row."""
    grid = make_grid(pictures.clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)
    array = (grid * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)


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
        with Image.open(self._paths[index]) as picture:
            return picture.convert("RGB")


def load_folder(folder: Path) -> Pictures:
    """All pictures of a folder, by name; ValueError if there are none or one is broken."""
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMG_EXTENSIONS)
    if not paths:
        raise ValueError(f"{folder} holds no pictures; name a folder of PNG or JPEG files.")
    pictures = Pictures(paths)
    try:
        for picture in pictures:
            picture.load()
    except OSError as error:
        raise ValueError(f"A picture in {folder} cannot be read ({error}); drop it.") from error
    return pictures
