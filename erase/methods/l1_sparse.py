"""l1-sparse: finetuning on the retain set while all weights are drawn towards 0."""

from dataclasses import dataclass, field

from torch import Tensor

from erase.erasure import Erasure
from erase.methods import register
from erase.tasks.base import Batch, Task
from erase.training import TrainingConfig, finetune


@dataclass(frozen=True)
class L1SparseConfig:
    """Finetuning with a penalty.

    Args:
        penalty: weight of the sum of all weights' magnitudes at the first step; it falls to 0.
        training: the optimizer's settings.
    """

    penalty: float = 1e-5
    training: TrainingConfig = field(default_factory=TrainingConfig)


@register("l1_sparse", L1SparseConfig)
def l1_sparse(task: Task, config: L1SparseConfig) -> Erasure:
    """Finetuning plus a falling l1 norm of the weights (Jia et al., NeurIPS 2023)."""
    weights = task.parameters().values()

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        norm = sum(weight.abs().sum() for weight in weights)
        return task.loss(retain) + config.penalty * (1 - progress) * norm

    return Erasure(finetune(task, step_loss, config.training))
