"""Noised latents, and what a model of either family is trained to predict of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import SchedulerMixin
from torch import Tensor

from erase.support.distributed import of_first


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
        parts: list[Any] = [p if p is None else p[rank::world] for p in vars(self).values()]
        return DiffusionBatch(*parts)


def seed_of(batch: DiffusionBatch) -> int:
    """A seed that follows from the batch's noise, the first process's for all."""
    return of_first(int(batch.noise.flatten()[0].float().view(torch.int32)))


# Of the latents and of the noise in the noised ones, then in what is predicted: [B, 1, ...] each.
Shares = tuple[Tensor, Tensor, Tensor, Tensor]


class Noising(ABC):
    """How latents are noised, and what a model is to predict of them."""

    @abstractmethod
    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Time steps [count] to train at."""

    @abstractmethod
    def shares(self, batch: DiffusionBatch) -> Shares:
        """How much of latents and noise there is at the batch's time steps."""

    def noisy(self, batch: DiffusionBatch) -> Tensor:
        """The latents at their time steps."""
        picture, noise, _, _ = self.shares(batch)
        return picture * batch.latents + noise * batch.noise

    def target(self, batch: DiffusionBatch) -> Tensor:
        """What the model is to predict of them."""
        _, _, picture, noise = self.shares(batch)
        return picture * batch.latents + noise * batch.noise


class DiscreteNoising(Noising):
    """Variance-preserving noise at whole time steps; predicts the noise, or the velocity.

    How much noise a step has is the scheduler's own `alphas_cumprod`, which no other scheduler
    made of its settings is sure to have.
    """

    def __init__(self, scheduler: SchedulerMixin):
        self._kept = scheduler.alphas_cumprod
        self._velocity = scheduler.config.get("prediction_type") == "v_prediction"

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform time steps [count]."""
        return torch.randint(len(self._kept), (count,), generator=generator)

    def shares(self, batch: DiffusionBatch) -> Shares:
        """The roots of what is kept and of the rest."""
        kept = self._kept.to(batch.latents.device)[batch.timesteps.long(), None, None, None]
        clean, noise = ((part**0.5).to(batch.latents.dtype) for part in (kept, 1 - kept))
        nothing, one = torch.zeros_like(clean), torch.ones_like(clean)
        predicted = (-noise, clean) if self._velocity else (nothing, one)
        return clean, noise, *predicted


class FlowNoising(Noising):
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

    def shares(self, batch: DiffusionBatch) -> Shares:
        """The time step's share of noise, and the rest."""
        share = (batch.timesteps / self._steps).to(batch.latents.dtype)[:, None, None, None]
        one = torch.ones_like(share)
        return 1 - share, share, -one, one


def noising_of(scheduler: SchedulerMixin) -> Noising:
    """The noising a pipeline's scheduler undoes; ValueError where that is not known.

    It is not for models that predict pictures, for time steps that are no whole ones, and for
    schedulers that keep no `alphas_cumprod`, as EDM's.
    """
    config, kind = scheduler.config, type(scheduler).__name__
    predicted = config.get("prediction_type", "epsilon")
    matched = "FlowMatch" in kind
    if predicted not in ("epsilon", "v_prediction", "flow_prediction"):
        raise ValueError(
            f"The pipeline's scheduler has prediction_type {predicted}; only epsilon, "
            "v_prediction and flow_prediction are supported."
        )
    flows = matched or predicted == "flow_prediction"
    continuous = config.get("timestep_type") == "continuous" and predicted == "v_prediction"
    unlike = not matched and flows != bool(config.get("use_flow_sigmas"))
    unknown = not flows and not hasattr(scheduler, "alphas_cumprod")
    if continuous or unlike or unknown or config.get("invert_sigmas"):
        raise ValueError(
            f"The noise that the pipeline's {kind} takes out at a time step is not known as it is "
            "set up; give the pipeline the scheduler that its model was trained with."
        )
    return FlowNoising(scheduler) if flows else DiscreteNoising(scheduler)


def settings_of(scheduler: SchedulerMixin) -> dict[str, Any]:
    """All its settings, for another kind of scheduler to be made of.

    `from_config` of the config itself would leave out what the scheduler has by default.
    """
    return {name: value for name, value in scheduler.config.items() if name[0] != "_"}
