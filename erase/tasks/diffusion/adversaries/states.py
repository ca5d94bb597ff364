"""The adversary behind the text encoders: what they say of a prompt, shifted."""

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from erase.core.precision import widened
from erase.models.conditions import Condition
from erase.models.family import STATES, Family
from erase.tasks.diffusion.adversaries.base import Adversary, Found, descended
from erase.tasks.diffusion.noising import DiffusionBatch


class States(Adversary):
    """A shift of the states that the denoiser reads of each prompt, each picture's own.

    It starts at none, and asks nothing of the text encoders, which may be frozen. Source: RACE (Kim
    et al., ECCV 2024), whose steps are of the gradient's signs, each number kept within a bound.
    """

    usual_reach: ClassVar[float] = 1.0

    @staticmethod
    def hindrance(family: Family) -> str:
        """Learned families' states are not told apart from what else their denoisers are given."""
        untold = "it shifts text states, which are not told apart in what a learned class is given"
        return untold if family.learned else ""

    def found(self, batch: DiffusionBatch) -> Found:
        """The shift [B, tokens, width]."""
        with torch.no_grad():
            plain = self.denoiser.condition(batch.prompts)
        states = widened(plain.states)
        start = {STATES: torch.zeros_like(states)}

        def error(found: Found) -> Tensor:
            return self.error(batch, _shifted(plain, found[STATES]))

        units = {STATES: states.std((1, 2), keepdim=True)}
        dtype = self.denoiser.dtype
        return descended(error, start, units, self.steps, self.reach, dtype, shared=False)

    def condition(self, batch: DiffusionBatch, found: Found) -> Condition:
        """What the denoiser reads with the shift."""
        return _shifted(self.denoiser.condition(batch.prompts), found[STATES])


def _shifted(text: Condition, shift: Tensor) -> Condition:
    return replace(text, states=text.states + shift.to(text.states.dtype))
