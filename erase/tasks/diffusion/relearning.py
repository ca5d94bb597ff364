"""Relearning as a user would try it: finetuning the denoiser on pictures of the concept."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erase.core.names import named_parameters
from erase.core.seeds import seeded
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch, seed_of


@dataclass(frozen=True)
class DenoiserRelearning:
    """Some steps of finetuning, each `rate` long in every tensor, root mean square."""

    denoiser: ConditionedDenoiser
    steps: int
    rate: float

    def weights(self) -> dict[str, nn.Parameter]:
        """All weights of the denoiser, or the denoisers."""
        family, modules = self.denoiser.family, self.denoiser.modules
        return named_parameters({n: modules[n] for n in (family.denoiser, *family.others)})

    def losses(self, batch: DiffusionBatch) -> Iterator[Tensor]:
        """The loss of each of 1 to `steps` steps, as many as the batch's noise says.

        It is the model's own on the batch's pictures that show the concept, noised anew each time.
        Texts are read once, for text encoders stay as they are.
        """
        assert batch.shows is not None
        denoiser, shows = self.denoiser, batch.shows.to(self.denoiser.device)
        generator = seeded(seed_of(batch))
        with torch.no_grad():
            text = denoiser.condition(batch.prompts)
        for _ in range(int(torch.randint(self.steps, (), generator=generator)) + 1):
            noised = denoiser.noised(batch.latents, batch.prompts, generator)
            errors = denoiser.errors(noised, denoiser.denoise(noised, text))
            yield (shows * errors).sum() / shows.sum().clamp_min(1)
