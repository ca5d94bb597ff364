"""l1-sparse: finetuning on the retain set while all weights are drawn towards 0."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erase.core.delta import deltas_between
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig
from erase.training.loop import train
from erase.training.preserve import only_trainable, restored_parameters


@dataclass(frozen=True)
class L1SparseConfig(TrainedConfig):
    """Finetuning with a penalty.

    Args:
        penalty: how far every weight is drawn to 0 in the first step, in steps of the learning
            rate; it falls to 0.
    """

    penalty: float = 0.1


@register("l1_sparse", L1SparseConfig, needs=holding(extra_per_weight=4))
def l1_sparse(task: TrainedTask, config: L1SparseConfig) -> Erasure:
    """Finetuning plus a falling l1 norm of the weights (Jia et al., NeurIPS 2023).

    The norm takes a proximal step of its own: its gradient jumps at 0, where rounding would decide.
    Their code adds the norm to the loss; its weight falls to 0 in the same way, by epochs.
    """
    weights = task.parameters()

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        return task.loss(retain)

    with restored_parameters(weights) as before, only_trainable(task, weights):
        zeros = {name: torch.zeros_like(weight) for name, weight in weights.items()}
        after = train(task, step_loss, config.training, None, weights, config.penalty, zeros)
        return Erasure(deltas_between(before, after))
