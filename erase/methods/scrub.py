"""SCRUB: stay with the teacher on the retain set, leave it on the forget set."""

from dataclasses import dataclass

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class ScrubConfig(TrainedConfig):
    """The balance of leaving and staying.

    Args:
        leaving_share: share of the steps, the first ones, that also leave the teacher.
        leaving_weight: weight of the forget set's distance from it.
        loss_weight: weight of the retain set's own loss, the paper's gamma.
        staying_weight: weight of the retain set's distance, the paper's alpha.
    """

    leaving_share: float = 0.6
    leaving_weight: float = 1.0
    loss_weight: float = 1.0
    staying_weight: float = 0.5


@register("scrub", ScrubConfig, needs=holding(teachers=1))
def scrub(task: TrainedTask, config: ScrubConfig) -> Erasure:
    """Teacher and disobedient student (Kurmanji et al., NeurIPS 2023).

    The paper's epochs of leaving and of staying alternate, in its code's small runs the first 3 of
    10, in its large ones 2 of 3; here every early step does both. Their code softens both answers
    by a temperature (2 or 4) and multiplies by its square; here they are taken as they are. Their
    optimizers have a weight decay (.1 or 5e-4).
    """
    base = task.frozen_copy()

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        kept = config.loss_weight * task.loss(retain)
        kept = kept + config.staying_weight * task.divergence(retain, base)
        if progress >= config.leaving_share:
            return kept
        return kept - config.leaving_weight * task.divergence(forget, base)

    return Erasure(finetune(task, step_loss, config.training))
