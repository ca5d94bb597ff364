"""Latent inversion: noise from which the erased model draws the concept without any words."""

from dataclasses import dataclass

import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from erase.attacks import register
from erase.attacks.base import Outcome, Target, encode_text
from erase.support.config import Config, Positive


@dataclass(frozen=True)
class LatentInversionConfig(Config):
    """Text-free inversion.

    Args:
        steps: sampling steps, there and back.
    """

    steps: Positive[int] = 25


@register("latent_inversion", LatentInversionConfig)
@torch.no_grad()
def latent_inversion(target: Target, config: LatentInversionConfig) -> Outcome:
    """Invert pictures of the concept with the empty prompt, then sample back with it.

    A hit says that the model can still draw it, as any model that denoises well can; compare with
    a retrained one. One picture a prompt, in turn.
    """
    pipeline, count = target.pipeline, len(target.prompts)
    latents = target.latents[torch.arange(count) % len(target.latents)]
    states = encode_text(pipeline, [""] * count)
    settings = pipeline.scheduler.config
    for kind in (DDIMInverseScheduler, DDIMScheduler):
        scheduler = kind.from_config(settings)
        scheduler.set_timesteps(config.steps)
        for step in scheduler.timesteps:
            found = pipeline.unet(latents, step, states).sample
            latents = scheduler.step(found, step, latents).prev_sample
    decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    pictures = (decoded / 2 + 0.5).clamp(0, 1).float().cpu()
    return target.outcome(pictures, 2 * config.steps * count)
