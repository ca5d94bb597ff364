"""NegGrad+: descend on the retain set while climbing on the forget set."""

from dataclasses import dataclass, field

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.tasks.base import Batch, Task
from erase.training.loop import TrainingConfig, finetune


@dataclass(frozen=True)
class NegGradConfig:
    """The balance of descent and ascent.

    Args:
        retain_share: weight of the retain set's loss; the forget set's has the rest.
        training: the optimizer's settings.
    """

    retain_share: float = 0.95
    training: TrainingConfig = field(default_factory=TrainingConfig)

    def __post_init__(self) -> None:
        if not 0 < self.retain_share < 1:
            raise ValueError(f"retain_share is {self.retain_share}; give a share in (0, 1).")


@register("neggrad_plus", NegGradConfig)
def neggrad(task: Task, config: NegGradConfig) -> Erasure:
    """Minimise share * retain loss - (1 - share) * forget loss (Kurmanji et al., NeurIPS 2023)."""
    share = config.retain_share

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        return share * task.loss(retain) - (1 - share) * task.loss(forget)

    return Erasure(finetune(task, step_loss, config.training))
