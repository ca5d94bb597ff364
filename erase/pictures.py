"""Writing pictures."""

from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid


def save_grid(pictures: Tensor, path: Path, columns: int) -> None:
    """Write float pictures [N, 3, H, W] in 0..1 as one PNG, row by row."""
    grid = make_grid(pictures.clamp(0, 1), nrow=columns, padding=2, pad_value=1.0)
    array = (grid * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)
