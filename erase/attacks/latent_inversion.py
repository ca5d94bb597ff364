"""Latent inversion: noise from which the erased model draws the concept without any words."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import (
    DDIMInverseScheduler,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SchedulerMixin,
)
from torch import Tensor

from erase.attacks import register
from erase.attacks.base import Outcome, Target
from erase.support.config import Config, Positive
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.learned import LearnedDenoiser
from erase.tasks.diffusion.noising import FlowNoising, settings_of


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
    denoiser, steps = target.denoiser, config.steps
    if isinstance(denoiser, LearnedDenoiser):
        steps = len(denoiser.noising.places(steps))

    def some(places: Tensor) -> Tensor:
        latents = target.latents[places % len(target.latents)]
        if isinstance(denoiser, LearnedDenoiser):
            return denoiser.pictures(_by_levels(denoiser, latents, steps))
        return denoiser.pictures(_by_schedulers(denoiser, latents, steps))

    passes = 2 * steps * len(target.prompts)
    return target.outcome(target.drawn_in_parts(some), passes)


def _by_schedulers(denoiser: ConditionedDenoiser, latents: Tensor, steps: int) -> Tensor:
    text = denoiser.condition([""] * len(latents))
    for scheduler in _schedulers(denoiser):
        scheduler.set_timesteps(steps, device=denoiser.device)
        for step in scheduler.timesteps:
            found = denoiser.predict(latents, step.expand(len(latents)), text)
            latents = scheduler.step(found, step, latents).prev_sample
    return latents


def _by_levels(denoiser: LearnedDenoiser, latents: Tensor, steps: int) -> Tensor:
    """The same along the levels of a draw, from the cleanest to the noisiest one."""
    noising, text = denoiser.noising, denoiser.condition([""] * len(latents))
    down = noising.places(steps)
    up = down[::-1]
    latents = noising.ladder.levels[up[0]].clean * latents
    ways = [(up[0], up[0]), *pairwise(up), *pairwise(down), (down[-1], None)]
    for now, then in ways:
        found = denoiser.predict(latents, torch.tensor([now]).expand(len(latents)), text)
        latents = noising.moved(latents, found, now, then)
    return latents


def _schedulers(denoiser: ConditionedDenoiser) -> tuple[SchedulerMixin, SchedulerMixin]:
    """A scheduler from pictures to noise and its inverse, without noise of their own.

    Flows are followed in even steps.
    """
    if isinstance(denoiser.noising, FlowNoising):
        kind = FlowMatchEulerDiscreteScheduler
        return kind(invert_sigmas=True), kind()
    settings = settings_of(denoiser.pipeline.scheduler)
    return DDIMInverseScheduler.from_config(settings), DDIMScheduler.from_config(settings)
