"""Image-conditioned recall: start from a noised picture of the concept and ask for it."""

import inspect
from dataclasses import dataclass

import diffusers
import torch
from diffusers import DiffusionPipeline

from erase.attacks import register
from erase.attacks.base import Outcome, Target
from erase.core.seeds import seeded
from erase.models.family import Family
from erase.support.config import Config, Share
from erase.tasks.diffusion.sampling import without_filter


@dataclass(frozen=True)
class RecallConfig(Config):
    """Image to image.

    Args:
        strength: how much of the way to noise the picture goes; 1 keeps nothing of it.
    """

    strength: Share = 0.8


def _image_to_image(family: Family) -> type[DiffusionPipeline] | None:
    """diffusers' image-to-image class of the family, if it has one."""
    stem = family.pipeline.__name__.removesuffix("Pipeline")
    return getattr(diffusers, f"{stem}Img2ImgPipeline", None)


def _hindrance(family: Family) -> str:
    return "" if _image_to_image(family) else "diffusers has no image-to-image pipeline of its kind"


@register("recall", RecallConfig, _hindrance)
@torch.no_grad()
def recall(target: Target, config: RecallConfig) -> Outcome:
    """Image-to-image from pictures of the concept under its own prompts, one picture a prompt."""
    family, side, count = target.denoiser.family, target.denoiser.side, len(target.prompts)
    pipeline = without_filter(target.pipeline, _image_to_image(family))
    asks_size = "height" in inspect.signature(pipeline.__call__).parameters
    pictures = pipeline(
        [prompt.text for prompt in target.prompts],
        image=target.pictures[torch.arange(count) % len(target.pictures)],
        strength=config.strength,
        num_inference_steps=target.sampling.steps,
        guidance_scale=target.sampling.guidance_scale,
        generator=[seeded(seed) for seed in target.seeds],
        output_type="pt",
        **({"height": side, "width": side} if asks_size else {}),
    ).images
    passes = int(target.passes_a_step * config.strength * target.sampling.steps * count)
    return target.outcome(pictures.float().cpu(), passes)
