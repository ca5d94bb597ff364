"""Bad teacher: answer as an untrained model on the forget set, as the base on the rest."""

from dataclasses import dataclass

from torch import Tensor

from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.tasks.classification.task import ClassificationBatch, ClassificationTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class BadTeacherConfig(TrainedConfig):
    """Two teachers.

    Args:
        retain_weight: weight of the competent teacher.
    """

    retain_weight: float = 1.0


@register("bad_teacher", BadTeacherConfig, ClassificationTask, holding(1, teachers=1))
def bad_teacher(task: ClassificationTask, config: BadTeacherConfig) -> Erasure:
    """Distillation from an incompetent and a competent teacher (Chundawat et al., AAAI 2023).

    Their code averages the divergence over classes too, and sees three tenths of the retain set in
    one epoch; here it is per sample, on batches of all of it.
    """
    competent, incompetent = task.frozen_copy(), task.untrained()

    def step_loss(
        forget: ClassificationBatch, retain: ClassificationBatch, progress: float
    ) -> Tensor:
        kept = config.retain_weight * task.divergence(retain, competent)
        return task.divergence(forget, incompetent) + kept

    return Erasure(finetune(task, step_loss, config.training))
