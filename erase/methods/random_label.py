"""Random label: wrong answers for the forget set, and no mask."""

from dataclasses import dataclass

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import Needs, register, usual_training
from erase.methods.salun import Teacher, relabelling_loss
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig, published_sgd
from erase.training.loop import finetune
from erase.training.turns import turns_of


@dataclass(frozen=True)
class RandomLabelConfig(TrainedConfig):
    """Relabelling of the forget set.

    Args:
        teacher: where answers come from, as for salun; the rate and steps are always the task's
            for training that nothing holds in place.
        retain_weight: weight of the retain set's loss.
        alternating: a pass of wrong answers, then one through the retain set, and so on; otherwise
            each step has both.
    """

    teacher: Teacher = "current"
    retain_weight: float = 1.0
    alternating: bool = False


PUBLISHED = RandomLabelConfig(alternating=True, training=published_sgd(0.01))


def _needs(task: TrainedTask, config: RandomLabelConfig) -> Needs:
    copies = int(config.teacher == "frozen")
    return Needs(task.parameters(), usual_training(task, config), copies)


@register("random_label", RandomLabelConfig, needs=_needs, published=PUBLISHED)
def random_label(task: TrainedTask, config: RandomLabelConfig) -> Erasure:
    """SalUn's objective on all weights (RL; Golatkar et al., CVPR 2020, and SalUn's tables).

    By default a step has a batch of both sets. The preset published is the tables' code, which
    takes the forget set, then the retain set, 10 epochs long; it draws the true label too, here
    never. Raises ValueError for alternating with a frozen teacher.
    """
    if config.alternating and config.teacher == "frozen":
        raise ValueError("alternating goes with the teacher current; leave one of them out.")
    if not config.alternating:
        both = relabelling_loss(task, config.teacher, config.retain_weight)
        return Erasure(finetune(task, both, config.training))
    turns = turns_of(task, usual_training(task, config).max_train_steps)

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        if turns.forgets(progress):
            return task.redirected_loss(forget)
        return config.retain_weight * task.loss(retain)

    return Erasure(finetune(task, step_loss, config.training))
