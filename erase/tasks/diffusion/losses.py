"""What a training of denoisers minimizes: mean squared errors of what they predict."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional as F

from erase.prompts.catalogue import Sampling
from erase.tasks.diffusion.denoiser import ConditionedDenoiser
from erase.tasks.diffusion.noising import DiffusionBatch


class DenoisingLosses(ABC):
    """The losses of whatever predicts noise or velocity for batches of noised latents."""

    denoiser: ConditionedDenoiser
    sampling: Sampling

    @abstractmethod
    def predict(self, batch: DiffusionBatch, prompts: Sequence[str]) -> Tensor:
        """The denoiser's output [B, C, h, w] for the noised latents under these prompts."""

    @abstractmethod
    def training_prediction(
        self, batch: DiffusionBatch, teacher: "DenoisingLosses | None" = None
    ) -> Tensor:
        """The output [B, C, h, w] that training compares: under the batch's own prompts."""

    @abstractmethod
    def _own_weights(self) -> AbstractContextManager[ConditionedDenoiser]:
        """While in force, the model has the weights that are this one's own."""

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
