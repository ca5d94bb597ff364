"""Noised latents, and what a model of either family is trained to predict of them."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, SchedulerMixin
from torch import Tensor


@dataclass(frozen=True)
class DiffusionBatch:
    """Latents and noise [B, C, h, w], time steps [B], prompts and their anchor prompts.

    shows: which of the pictures show what the prompts are to forget [B], none if there is nothing.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: list[str]
    anchors: list[str]
    shows: Tensor | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def shard(self, rank: int, world: int) -> "DiffusionBatch":
        """Every `world`-th sample, from `rank` on."""
        mine = slice(rank, None, world)
        return DiffusionBatch(
            self.latents[mine],
            self.noise[mine],
            self.timesteps[mine],
            self.prompts[mine],
            self.anchors[mine],
            None if self.shows is None else self.shows[mine],
        )


class DiscreteNoising:
    """Variance-preserving noise at whole time steps; predicts the noise, or the velocity."""

    def __init__(self, scheduler: SchedulerMixin):
        self._scheduler = DDPMScheduler.from_config(scheduler.config)

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform time steps [count]."""
        steps = self._scheduler.config.num_train_timesteps
        return torch.randint(steps, (count,), generator=generator)

    def noisy(self, batch: DiffusionBatch) -> Tensor:
        """The latents at their time steps."""
        return self._scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)

    def target(self, batch: DiffusionBatch) -> Tensor:
        """What the model is to predict of them."""
        if self._scheduler.config.prediction_type == "v_prediction":
            return self._scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        return batch.noise


class FlowNoising:
    """Straight lines from picture to noise; predicts noise - latents (Lipman et al., ICLR 2023).

    A time step is 1000 times the noise's share, shifted as the scheduler's `shift` says (Esser et
    al., ICML 2024, eq. 23).
    """

    def __init__(self, scheduler: SchedulerMixin):
        self._steps = scheduler.config.num_train_timesteps
        self._shift = scheduler.config.get("shift") or scheduler.config.get("flow_shift") or 1.0

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Time steps [count] of uniform noise shares, shifted."""
        share = torch.rand(count, generator=generator)
        return self._steps * self._shift * share / (1 + (self._shift - 1) * share)

    def noisy(self, batch: DiffusionBatch) -> Tensor:
        """The latents at their time steps."""
        share = (batch.timesteps / self._steps).to(batch.latents.dtype)[:, None, None, None]
        return (1 - share) * batch.latents + share * batch.noise

    def target(self, batch: DiffusionBatch) -> Tensor:
        """What the model is to predict of them."""
        return batch.noise - batch.latents


Noising = DiscreteNoising | FlowNoising


def noising_of(scheduler: SchedulerMixin) -> Noising:
    """The noising a pipeline's scheduler undoes; ValueError for one that predicts pictures."""
    predicted = scheduler.config.get("prediction_type", "epsilon")
    if "FlowMatch" in type(scheduler).__name__ or predicted == "flow_prediction":
        return FlowNoising(scheduler)
    if predicted not in ("epsilon", "v_prediction"):
        raise ValueError(
            f"The pipeline's scheduler has prediction_type {predicted}; only epsilon, "
            "v_prediction and flow_prediction are supported."
        )
    return DiscreteNoising(scheduler)
