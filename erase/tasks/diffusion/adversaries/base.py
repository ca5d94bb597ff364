"""What every adversary is, and the one problem that all of them solve."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from erase.core.precision import gradients
from erase.core.seeds import seeded
from erase.models.conditions import Condition
from erase.models.family import Family
from erase.support.distributed import all_reduce_sum
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch, seed_of
from erase.tasks.diffusion.words import vocabularies

Found = Mapping[str, Tensor]
Asked = Callable[[], AbstractContextManager[ConditionedDenoiser]]


@dataclass(frozen=True)
class Adversary(ABC):
    """What the denoiser is to read of forget prompts, so that it draws the concept again.

    reach: how far the `steps` gradient steps together move what is found, root mean square, in
    standard deviations of its kind's numbers. asked: while in force, the denoiser is the one whose
    answers are learnt, if that is another.
    """

    usual_reach: ClassVar[float]
    denoiser: ConditionedDenoiser
    steps: int
    reach: float
    asked: Asked | None = None

    @staticmethod
    def hindrance(family: Family) -> str:
        """Why it cannot serve a family's pipelines, or an empty text."""
        return ""

    def lengthened(self, prompts: Sequence[str]) -> list[str]:
        """The prompts, as long as they become under it."""
        return list(prompts)

    def teacher(self) -> AbstractContextManager[ConditionedDenoiser]:
        """While in force, the denoiser whose answers are learnt."""
        return self.asked() if self.asked else nullcontext(self.denoiser)

    @abstractmethod
    def found(self, batch: DiffusionBatch) -> Found:
        """What makes the errors small of the batch's pictures that show the concept."""

    @abstractmethod
    def condition(self, batch: DiffusionBatch, found: Found) -> Condition:
        """What the denoiser reads of the batch's prompts with it."""

    def prediction(self, batch: DiffusionBatch) -> Tensor:
        """The denoiser's output [B, C, h, w] under what was found."""
        return self.denoiser.denoise(batch, self.condition(batch, self.found(batch)))

    def error(self, batch: DiffusionBatch, text: Condition) -> Tensor:
        """The sum of the errors of the pictures that show the concept, under this reading."""
        assert batch.shows is not None
        shows = batch.shows.to(self.denoiser.device)
        found = self.denoiser.denoise(batch, text)
        return (shows * self.denoiser.errors(batch, found)).sum()


class Words(Adversary):
    """`count` words of the text encoders, the same for all prompts.

    The search starts at random ones of the vocabulary, drawn by the batch's noise.
    """

    usual_reach: ClassVar[float] = 20.0
    count: ClassVar[int]

    @staticmethod
    def hindrance(family: Family) -> str:
        """Learned families' are not searched in training, whichever of them may change."""
        none = "it looks for words in CLIP text encoders that change by default, and there is none"
        return "" if family.encoders else none

    def found(self, batch: DiffusionBatch) -> Found:
        """The words, by text encoder [count, width]."""
        tables, seed = vocabularies(self.denoiser), seed_of(batch)
        start, units = {}, {}
        for name, table in tables.items():
            numbers = torch.randint(len(table), (self.count,), generator=seeded(seed))
            start[name], units[name] = table[numbers.to(table.device)], table.std()

        def error(words: Found) -> Tensor:
            return self.error(batch, self.condition(batch, words))

        return descended(error, start, units, self.steps, self.reach, self.denoiser.dtype)


def descended(
    error: Callable[[Found], Tensor],
    start: Found,
    units: Mapping[str, Tensor],
    steps: int,
    reach: float,
    through: torch.dtype,
    shared: bool = True,
) -> dict[str, Tensor]:
    """What `steps` gradient steps of one length make of `start`, to lower the error, a scalar.

    Together they are `reach` units long at most, root mean square. What is shared by all samples
    is found alike in all processes; else each row is a sample's own, and so is its step's length.
    Source: the inner problem of AdvUnlearn (Zhang et al., NeurIPS 2024), by normalised steps.
    """
    words = dict(start)
    for _ in range(steps):
        words = {name: vectors.requires_grad_() for name, vectors in words.items()}
        with torch.enable_grad():
            slopes = gradients(error(words), list(words.values()), through)
        words = {
            name: vectors.detach() - reach / steps * units[name] * _of_unit_size(slope, shared)
            for (name, vectors), slope in zip(words.items(), slopes, strict=True)
        }
    return words


def _of_unit_size(slope: Tensor, shared: bool) -> Tensor:
    """The slope, its root mean square 1: all processes' together, or row by row."""
    if shared:
        slope = all_reduce_sum(slope)
    over = None if shared else tuple(range(1, slope.ndim))
    size = slope.square().mean(over, keepdim=True).sqrt()
    return slope / size.clamp_min(torch.finfo(slope.dtype).tiny)
