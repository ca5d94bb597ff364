"""LPIPS between pictures of the same prompts and seeds: how much else changed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from erase.evaluate.base import Measurement, OpenJudge, evaluator
from erase.evaluate.reports import mean_with_error
from erase.support.config import Config
from erase.support.distributed import shared_map
from erase.support.errors import refused
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


def lpips(
    partners: Sequence[Image], backbone: Backbone = "alex", device: str = "cpu"
) -> Measurement:
    """LPIPS (Zhang et al., CVPR 2018) of every picture to its partner: mean and standard error.

    torchmetrics computes it; torchvision's backbone must be at hand or downloadable. Raises
    ValueError if either is missing, and unless there is a partner of its size for each picture.
    """
    mend = "install torchmetrics, and bring torchvision's weights to the hub cache"
    with refused(f"LPIPS with {backbone} cannot be opened", mend, ImportError, OSError):
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(backbone, normalize=True).to(device)

    @torch.no_grad()
    def distances(pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        if [p.size for p in pictures] != [p.size for p in partners]:
            raise ValueError(
                f"The {len(pictures)} pictures and their {len(partners)} partners differ in "
                "number or size; draw both with the same prompts."
            )

        def distance(i: int) -> Tensor:
            return metric(*(to_tensor(of[i])[None].to(device) for of in (pictures, partners))).cpu()

        return mean_with_error(torch.stack(shared_map(distance, range(len(pictures)))))

    return Measurement("lpips", {"backbone": backbone, "partners": len(partners)}, distances)


@evaluator("lpips", PerceptualConfig)
def perceptual(config: PerceptualConfig, judge: OpenJudge) -> Measurement | None:
    """LPIPS to the partners, if there are any."""
    if not config.partners:
        return None
    return lpips(load_folder(Path(config.partners)), config.backbone, judge.device)
