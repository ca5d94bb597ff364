"""Bad teacher: answer as an untrained model on the forget set, as the base on the rest."""

from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.support.config import Within
from erase.tasks.classification.task import ClassificationBatch, ClassificationTask
from erase.training.config import UNCLIPPED, TrainedConfig, TrainingConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class BadTeacherConfig(TrainedConfig):
    """Two teachers.

    Args:
        retain_weight: weight of the competent teacher.
        retain_part: the part of the retain set that the forget set is mixed with; every sample of
            the mixture weighs the same, and the loss is a mean over classes too. 0 weighs the sets
            by retain_weight instead.
    """

    retain_weight: float = 1.0
    retain_part: Annotated[float, Within(lambda part: 0 <= part <= 1, "a part in [0, 1]")] = 0.0


PUBLISHED = BadTeacherConfig(
    retain_part=0.3, training=TrainingConfig(0, 1e-4, "constant", max_grad_norm=UNCLIPPED)
)


@register("bad_teacher", BadTeacherConfig, ClassificationTask, holding(1, teachers=1), PUBLISHED)
def bad_teacher(task: ClassificationTask, config: BadTeacherConfig) -> Erasure:
    """Distillation from an incompetent and a competent teacher (Chundawat et al., AAAI 2023).

    Theirs goes once through the forget set mixed with a fixed .3 of the retain set, in batches of
    256; here every step has a batch of either set, of all of it, and the preset published weighs
    the two as that mixture does, and averages over classes too, as theirs does.
    """
    competent, incompetent = task.frozen_copy(), task.untrained()
    whole, weight = 1.0, config.retain_weight
    if config.retain_part:
        weight = config.retain_part * len(task.retain) / len(task.forget)
        whole = (1 + weight) * task.classes

    def step_loss(
        forget: ClassificationBatch, retain: ClassificationBatch, progress: float
    ) -> Tensor:
        kept = weight * task.divergence(retain, competent)
        return (task.divergence(forget, incompetent) + kept) / whole

    return Erasure(finetune(task, step_loss, config.training))
