"""Finetune: training goes on with the retain set alone."""

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.tasks.base import TrainedTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@register("finetune", TrainedConfig)
def finetune_on_retain(task: TrainedTask, config: TrainedConfig) -> Erasure:
    """The baseline that hopes to forget by not rehearsing (FT in SalUn's tables).

    AdamW, where the tables have SGD (.01, momentum .9, weight decay 5e-4) for 10 epochs.
    """
    return Erasure(finetune(task, lambda _, retain, progress: task.loss(retain), config.training))
