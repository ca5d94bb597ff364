"""NegGrad+: descend on the retain set while climbing on the forget set."""

from dataclasses import dataclass

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.support.config import PartShare
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class NegGradConfig(TrainedConfig):
    """The balance of descent and ascent.

    Args:
        retain_share: weight of the retain set's loss; the forget set's has the rest.
    """

    retain_share: PartShare = 0.95


@register("neggrad_plus", NegGradConfig)
def neggrad(task: TrainedTask, config: NegGradConfig) -> Erasure:
    """Minimise share * retain loss - (1 - share) * forget loss (Kurmanji et al., NeurIPS 2023).

    The share is their code's; AdamW, where that has SGD (.01) for 10 epochs.
    """
    share = config.retain_share

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        return share * task.loss(retain) - (1 - share) * task.loss(forget)

    return Erasure(finetune(task, step_loss, config.training))
