"""What forgetting in a classifier may change, and the batches it learns from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from erase.support.config import Config, NotNegative, Positive


@dataclass(frozen=True)
class ClassificationTaskConfig(Config):
    """Which weights may change, and how many samples a step sees.

    Args:
        include: shell patterns of the tensors that may change, as in "model.layer4*".
        exclude: patterns of those among them that may not.
        batch_size: samples of either set in a training step.
        redirect: what a forgotten sample is taught: a random other label, or what a model that was
            briefly fitted to the retain set alone makes of it, which is near what Retrain will.
        held_out_epochs: how long that model is fitted, by the original's own recipe; 0 is half as
            long as the original.
    """

    include: Sequence[str] = ("*",)
    exclude: Sequence[str] = ()
    batch_size: Positive[int] = 64
    redirect: Literal["random_label", "held_out"] = "random_label"
    held_out_epochs: NotNegative[int] = 0


@dataclass(frozen=True)
class ClassificationBatch:
    """Inputs [B, ...], their labels [B], and what to answer instead: [B], or [B, classes]."""

    inputs: Tensor
    labels: Tensor
    answers: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def shard(self, rank: int, world: int) -> "ClassificationBatch":
        """Every `world`-th sample, from `rank` on."""
        return ClassificationBatch(*(part[rank::world] for part in vars(self).values()))
