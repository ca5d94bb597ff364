"""Latent inversion: noise from which the erased model draws the concept without any words."""

from dataclasses import dataclass

import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from erase.attacks import register
from erase.attacks.base import Outcome, Target, uncoded
from erase.support.config import Config, Positive
from erase.tasks.diffusion.denoiser import ConditionedDenoiser, pictures_of
from erase.tasks.diffusion.noising import FlowNoising, settings_of


@dataclass(frozen=True)
class LatentInversionConfig(Config):
    """Text-free inversion.

    Args:
        steps: sampling steps, there and back.
    """

    steps: Positive[int] = 25


@register("latent_inversion", LatentInversionConfig, uncoded)
@torch.no_grad()
def latent_inversion(target: Target, config: LatentInversionConfig) -> Outcome:
    """Invert pictures of the concept with the empty prompt, then sample back with it.

    A hit says that the model can still draw it, as any model that denoises well can; compare with
    a retrained one. One picture a prompt, in turn.
    """
    denoiser = target.denoiser

    def some(places: Tensor) -> Tensor:
        latents = target.latents[places % len(target.latents)]
        text = denoiser.condition([""] * len(places))
        for scheduler in _schedulers(denoiser):
            scheduler.set_timesteps(config.steps, device=denoiser.device)
            for step in scheduler.timesteps:
                found = denoiser.predict(latents, step.expand(len(places)), text)
                latents = scheduler.step(found, step, latents).prev_sample
        return pictures_of(target.pipeline, latents)

    passes = 2 * config.steps * len(target.prompts)
    return target.outcome(target.drawn_in_parts(some), passes)


def _schedulers(denoiser: ConditionedDenoiser) -> tuple[SchedulerMixin, SchedulerMixin]:
    """A scheduler from pictures to noise and its inverse, without noise of their own.

    Flows are followed in even steps.
    """
    if isinstance(denoiser.noising, FlowNoising):
        kind = FlowMatchEulerDiscreteScheduler
        return kind(invert_sigmas=True), kind()
    settings = settings_of(denoiser.pipeline.scheduler)
    return DDIMInverseScheduler.from_config(settings), DDIMScheduler.from_config(settings)
