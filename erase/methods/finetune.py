"""Finetune: training goes on with the retain set alone."""

from dataclasses import dataclass, field

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.tasks.base import Task
from erase.training.loop import TrainingConfig, finetune


@dataclass(frozen=True)
class FinetuneConfig:
    """Finetuning on what is to stay.

    Args:
        training: the optimizer's settings.
    """

    training: TrainingConfig = field(default_factory=TrainingConfig)


@register("finetune", FinetuneConfig)
def finetune_on_retain(task: Task, config: FinetuneConfig) -> Erasure:
    """The baseline that hopes to forget by not rehearsing (FT in SalUn's tables)."""
    return Erasure(finetune(task, lambda _, retain, progress: task.loss(retain), config.training))
