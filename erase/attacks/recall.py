"""Image-conditioned recall: start from a noised picture of the concept and ask for it."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from erase.attacks import register
from erase.attacks.base import Outcome, Target
from erase.core.seeds import seeded
from erase.models.family import Family
from erase.prompts.catalogue import Sampling
from erase.support.config import Config, Share
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.learned import LearnedDenoiser
from erase.tasks.diffusion.led import Led
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
    known = family.learned or _image_to_image(family)
    return "" if known else "diffusers has no image-to-image pipeline of its kind"


def _trial(denoiser: ConditionedDenoiser, sampling: Sampling, config: RecallConfig) -> None:
    if isinstance(denoiser, LearnedDenoiser):
        _leader(denoiser, sampling, config).require()
    if config.strength * sampling.steps < 1:
        raise ValueError(f"recall.strength is {config.strength}, less than one of {sampling.steps} "
                         "steps, so that the model would draw nothing; give more.")  # fmt: skip


def _leader(denoiser: LearnedDenoiser, sampling: Sampling, config: RecallConfig) -> Led:
    return Led(denoiser, sampling, sampling.steps - int(config.strength * sampling.steps))


@register("recall", RecallConfig, _hindrance, _trial)
@torch.no_grad()
def recall(target: Target, config: RecallConfig) -> Outcome:
    """Image-to-image from pictures of the concept under its own prompts, one picture a prompt.

    A pipeline that told of itself draws as ever, but the first steps' answers are made up so that
    they lead to the picture.
    """
    denoiser, steps = target.denoiser, int(config.strength * target.sampling.steps)
    if isinstance(denoiser, LearnedDenoiser):
        pictures = target.drawn_in_parts(_led(target, config))
    else:
        pipeline = without_filter(target.pipeline, _image_to_image(denoiser.family))
        pictures = target.drawn_in_parts(_begun(target, config, pipeline))
        # Pipelines round otherwise; a process that drew none has no number, and is not asked.
        steps = getattr(pipeline, "num_timesteps", steps)
    return target.outcome(pictures, target.passes_a_step * steps * len(target.prompts))


def _begun(
    target: Target, config: RecallConfig, pipeline: DiffusionPipeline
) -> Callable[[Tensor], Tensor]:
    """What draws for the prompts at some places with the stock pipeline."""
    side, seeds = target.denoiser.side, target.seeds
    asks_size = "height" in inspect.signature(pipeline.__call__).parameters

    def some(places: Tensor) -> Tensor:
        return pipeline(
            [target.prompts[i].text for i in places.tolist()],
            image=target.pictures[places % len(target.pictures)],
            strength=config.strength,
            num_inference_steps=target.sampling.steps,
            guidance_scale=target.sampling.guidance_scale,
            generator=[seeded(seeds[i]) for i in places.tolist()],
            output_type="pt",
            **({"height": side, "width": side} if asks_size else {}),
        ).images

    return some


def _led(target: Target, config: RecallConfig) -> Callable[[Tensor], Tensor]:
    """What draws for the prompts at some places by leading the pipeline's own draws."""
    assert isinstance(target.denoiser, LearnedDenoiser)
    led = _leader(target.denoiser, target.sampling, config)

    def some(places: Tensor) -> Tensor:
        latents = target.latents[places % len(target.latents)]
        texts = [target.prompts[place].text for place in places.tolist()]
        seeds = [target.seeds[place] for place in places.tolist()]
        return torch.cat([led.drawn(*one) for one in zip(latents, texts, seeds, strict=True)])

    return some
