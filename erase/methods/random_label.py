"""Random label: wrong answers for the forget set, and no mask."""

from dataclasses import dataclass

from erase.erasure.erasure import Erasure
from erase.methods import Needs, register, usual_training
from erase.methods.salun import Teacher, relabelling_loss
from erase.tasks.base import TrainedTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class RandomLabelConfig(TrainedConfig):
    """Relabelling of the forget set.

    Args:
        teacher: where answers come from, as for salun; the rate and steps are always the task's
            for training that nothing holds in place.
        retain_weight: weight of the retain set's loss.
    """

    teacher: Teacher = "current"
    retain_weight: float = 1.0


def _needs(task: TrainedTask, config: RandomLabelConfig) -> Needs:
    copies = int(config.teacher == "frozen")
    return Needs(task.parameters(), usual_training(task, config), copies)


@register("random_label", RandomLabelConfig, needs=_needs)
def random_label(task: TrainedTask, config: RandomLabelConfig) -> Erasure:
    """SalUn's objective on all weights (RL; Golatkar et al., CVPR 2020, and SalUn's tables).

    The tables' code draws the true label too, and takes the forget set, then the retain set, epoch
    by epoch with SGD (.01); here a step has a batch of both, and AdamW.
    """
    loss = relabelling_loss(task, config.teacher, config.retain_weight)
    return Erasure(finetune(task, loss, config.training))
