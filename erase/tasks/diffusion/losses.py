"""What a training of denoisers minimizes: mean squared errors of what they predict."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from erase.core.snapshot import Snapshot
from erase.models.conditions import Condition
from erase.prompts.catalogue import Sampling
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch
from erase.tasks.diffusion.places import EditedPipeline


class DenoisingLosses(EditedPipeline):
    """The losses of whatever predicts noise or velocity for batches of noised latents."""

    sampling: Sampling
    _held = Snapshot((), ())  # of what training changes

    @contextmanager
    def _own_weights(self) -> Iterator[ConditionedDenoiser]:
        """While in force, the model has the weights that are this one's own."""
        with self._held.in_place():
            yield self.denoiser

    def condition(self, prompts: Sequence[str]) -> Condition:
        """What the denoiser reads of the prompts; has gradients if a text encoder may change."""
        trained = bool({*self.components} - {self.family.denoiser, *self.family.others})
        with torch.set_grad_enabled(torch.is_grad_enabled() and trained):
            return self.denoiser.condition(prompts)

    def predict(self, batch: DiffusionBatch, prompts: Sequence[str]) -> Tensor:
        """The denoiser's output [B, C, h, w] for the noised latents under these prompts."""
        with self._own_weights():
            return self.denoiser.denoise(batch, self.condition(prompts))

    def training_prediction(
        self, batch: DiffusionBatch, teacher: "DenoisingLosses | None" = None
    ) -> Tensor:
        """The output [B, C, h, w] that training compares: under the batch's own prompts.

        Where the config asks for an adversary, forget batches' prompts are read as it has them.
        It may ask the teacher whose answers for them are learnt.
        """
        asked = teacher._own_weights if teacher else None
        adversary = self.config.adversary_of(self.denoiser, asked)
        if not adversary or batch.shows is None:
            return self.predict(batch, batch.prompts)
        with self._own_weights():
            return adversary.prediction(batch)

    def saliency_loss(self, batch: DiffusionBatch) -> Tensor:
        """Noise-prediction MSE of the guided prediction, as SalUn's generation code takes it.

        Of families that are not guided it is of the plain one. No adversary takes part.
        """
        predicted, target = self.predict(batch, batch.prompts), self.denoiser.noising.target(batch)
        if self.denoiser.guided:
            scale, unprompted = self.sampling.guidance_scale, self.predict(batch, [""] * len(batch))
            predicted = (1 + scale) * predicted - scale * unprompted
        return F.mse_loss(predicted, target)

    def loss(self, batch: DiffusionBatch) -> Tensor:
        """The noise- (or velocity-) prediction MSE the model was trained with."""
        return F.mse_loss(self.training_prediction(batch), self.denoiser.noising.target(batch))

    def redirected_loss(
        self, batch: DiffusionBatch, teacher: "DenoisingLosses | None" = None
    ) -> Tensor:
        """MSE to what the teacher (or the model as it is) predicts for the anchor prompts."""
        with torch.no_grad():
            wrong_answer = (teacher or self).predict(batch, batch.anchors)
        return F.mse_loss(self.training_prediction(batch, teacher or self), wrong_answer)

    def divergence(
        self, batch: DiffusionBatch, teacher: "DenoisingLosses", temperature: float = 1.0
    ) -> Tensor:
        """MSE to what the teacher predicts for the same prompts, whatever the temperature."""
        with torch.no_grad():
            answer = teacher.predict(batch, batch.prompts)
        return F.mse_loss(self.training_prediction(batch), answer)
