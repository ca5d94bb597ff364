"""LPIPS between pictures of the same prompts and seeds: how much else changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from erase.evaluate.base import OpenJudge, evaluator
from erase.evaluate.reports import mean_with_error
from erase.support.config import Config
from erase.support.distributed import shared_map
from erase.support.errors import first_line
from erase.support.pictures import load_folder

Backbone = Literal["alex", "squeeze", "vgg"]


@dataclass(frozen=True)
class PerceptualConfig(Config):
    """Pictures of the same prompts and seeds.

    Args:
        partners: a folder of the same prompts' pictures from another model, for LPIPS.
        backbone: LPIPS' own.
    """

    partners: str = ""
    backbone: Backbone = "alex"


class Perceptual:
    """LPIPS (Zhang et al., CVPR 2018) of every picture to its partner.

    torchmetrics computes it; torchvision's backbone must be at hand or downloadable. Raises
    ValueError if either is missing.
    """

    name = "lpips"

    def __init__(self, partners: Sequence[Image], backbone: Backbone = "alex", device: str = "cpu"):
        self._partners, self._backbone, self._device = partners, backbone, device
        try:
            from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

            metric = LearnedPerceptualImagePatchSimilarity(backbone, normalize=True)
        except (ImportError, OSError) as error:
            raise ValueError(
                f"LPIPS with {backbone} cannot be opened ({first_line(error)}); install "
                "torchmetrics, and bring torchvision's weights to the hub cache."
            ) from error
        self._metric = metric.to(device)

    def protocol(self) -> dict[str, Any]:
        """The backbone."""
        return {"backbone": self._backbone, "partners": len(self._partners)}

    @torch.no_grad()
    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """Mean and standard error; ValueError unless there is a partner of its size for each."""
        if [p.size for p in pictures] != [p.size for p in self._partners]:
            raise ValueError(
                f"The {len(pictures)} pictures and their {len(self._partners)} partners differ in "
                "number or size; draw both with the same prompts."
            )

        def distance(i: int) -> Tensor:
            pair = (to_tensor(of[i])[None].to(self._device) for of in (pictures, self._partners))
            return self._metric(*pair).cpu()

        return mean_with_error(torch.stack(shared_map(distance, range(len(pictures)))))


@evaluator("lpips", PerceptualConfig)
def perceptual(config: PerceptualConfig, judge: OpenJudge) -> Perceptual | None:
    """LPIPS to the partners, if there are any."""
    if not config.partners:
        return None
    return Perceptual(load_folder(Path(config.partners)), config.backbone, judge.device)
