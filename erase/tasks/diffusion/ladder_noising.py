"""The noise of a pipeline that told of itself: the levels that it draws by."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from erase.models.ladder import Ladder
from erase.tasks.diffusion.noising import DiffusionBatch, Noising, Shares


class LearnedNoising(Noising):
    """The levels of noise that the pipeline itself draws by; time steps are their places."""

    def __init__(self, find: Callable[[], Ladder]):
        self._find = find

    @cached_property
    def ladder(self) -> Ladder:
        """The levels, found when first asked for."""
        return self._find()

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Uniform places [count]."""
        return torch.randint(len(self.ladder.levels), (count,), generator=generator)

    def shares(self, batch: DiffusionBatch) -> Shares:
        """How much the levels have of both, the noise with the deviation that draws begin with."""
        levels = [self.ladder.levels[place] for place in batch.timesteps.tolist()]
        mixes = [(one.clean, one.noise, one.picture, one.unit) for one in levels]
        shape = (4, -1, *[1] * (batch.latents.ndim - 1))
        clean, noise, picture, unit = batch.latents.new_tensor(mixes).T.view(shape)
        deviation = self.ladder.deviation
        return clean, noise * deviation, picture, unit * deviation

    def places(self, count: int) -> list[int]:
        """At most so many places, evenly from the noisiest to the cleanest level."""
        last = len(self.ladder.levels) - 1
        return torch.linspace(0, last, min(count, last + 1)).round().long().tolist()

    def moved(self, noisy: Tensor, found: Tensor, now: int, then: int | None) -> Tensor:
        """Noised latents of one level at another, or the clean ones, by what was said of them.

        As DDIM does (Song et al., ICLR 2021), without noise of its own.
        """
        level = self.ladder.levels[now]
        whole = level.clean * level.unit - level.noise * level.picture
        clean = (level.unit * noisy - level.noise * found) / whole
        if then is None:
            return clean
        noise = (level.clean * found - level.picture * noisy) / whole
        level = self.ladder.levels[then]
        return level.clean * clean + level.noise * noise
