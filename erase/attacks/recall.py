"""Image-conditioned recall: start from a noised picture of the concept and ask for it."""

from dataclasses import dataclass

import torch
from diffusers import StableDiffusionImg2ImgPipeline

from erase.attacks import register
from erase.attacks.base import Outcome, Target
from erase.support.config import Config, Share


@dataclass(frozen=True)
class RecallConfig(Config):
    """Image to image.

    Args:
        strength: how much of the way to noise the picture goes; 1 keeps nothing of it.
    """

    strength: Share = 0.8


@register("recall", RecallConfig)
@torch.no_grad()
def recall(target: Target, config: RecallConfig) -> Outcome:
    """Image-to-image from pictures of the concept under its own prompts, one picture a prompt."""
    parts = dict(target.pipeline.components) | {
        "safety_checker": None,
        "requires_safety_checker": False,
    }
    pipeline = StableDiffusionImg2ImgPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    count = len(target.prompts)
    pictures = pipeline(
        [prompt.text for prompt in target.prompts],
        image=target.pictures[torch.arange(count) % len(target.pictures)],
        strength=config.strength,
        num_inference_steps=target.sampling.steps,
        guidance_scale=target.sampling.guidance_scale,
        generator=[torch.Generator().manual_seed(seed) for seed in target.seeds],
        output_type="pt",
    ).images
    passes = int(2 * config.strength * target.sampling.steps * count)
    return target.outcome(pictures.float().cpu(), passes)
