"""The noise of a pipeline that told of itself: the levels that it draws by."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from erase.models.ladder import Ladder
from erase.tasks.diffusion.noising import DiffusionBatch


class LearnedNoising:
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

    def _mixed(self, batch: DiffusionBatch, picture: str, noise: str) -> Tensor:
        levels = [self.ladder.levels[place] for place in batch.timesteps.tolist()]
        shape = (-1, *[1] * (batch.latents.ndim - 1))
        shares = (
            batch.latents.new_tensor([getattr(level, name) for level in levels]).view(shape)
            for name in (picture, noise)
        )
        of_picture, of_noise = shares
        return of_picture * batch.latents + of_noise * self.ladder.deviation * batch.noise

    def noisy(self, batch: DiffusionBatch) -> Tensor:
        """The latents at their levels, as the denoiser is given them."""
        return self._mixed(batch, "clean", "noise")

    def target(self, batch: DiffusionBatch) -> Tensor:
        """What the denoiser is to say of them."""
        return self._mixed(batch, "picture", "unit")

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
