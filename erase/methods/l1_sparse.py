"""l1-sparse: finetuning on the retain set while all weights are drawn towards 0."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from erase.core.delta import deltas_between
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig, published_sgd
from erase.training.loop import train
from erase.training.preserve import only_trainable, restored_parameters


@dataclass(frozen=True)
class L1SparseConfig(TrainedConfig):
    """Finetuning with a penalty.

    Args:
        penalty: how far every weight is drawn to 0 in the first step, in steps of the learning
            rate; it falls to 0.
        applied: the penalty is a "step" of its own, or the l1 norm's weight in the "loss".
    """

    keeps = False
    penalty: float = 0.1
    applied: Literal["step", "loss"] = "step"


PUBLISHED = L1SparseConfig(5e-4, "loss", training=published_sgd(0.01))


@register("l1_sparse", L1SparseConfig, needs=holding(extra_per_weight=4), published=PUBLISHED)
def l1_sparse(task: TrainedTask, config: L1SparseConfig) -> Erasure:
    """Finetuning plus a falling l1 norm of the weights (Jia et al., NeurIPS 2023).

    The norm takes a proximal step of its own: its gradient jumps at 0, where rounding would decide.
    Their code, which the preset published follows, adds the norm to the loss, for 10 epochs; its
    weight, the paper's 5e-4, falls by epochs, not by steps.
    """
    weights = task.parameters()

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        if config.applied == "step":
            return task.loss(retain)
        norm = sum(weight.abs().sum() for weight in weights.values())
        return task.loss(retain) + config.penalty * (1 - progress) * norm

    proximal = config.penalty if config.applied == "step" else 0.0
    with restored_parameters(weights) as before, only_trainable(task, weights):
        zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        after = train(task, step_loss, config.training, None, weights, proximal, zeros)
        return Erasure(deltas_between(before, after))
