"""Finetune: training goes on with the retain set alone."""

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.tasks.base import TrainedTask
from erase.training.config import TrainedConfig, published_sgd
from erase.training.loop import finetune

PUBLISHED = TrainedConfig(training=published_sgd(0.01))


@register("finetune", TrainedConfig, published=PUBLISHED)
def finetune_on_retain(task: TrainedTask, config: TrainedConfig) -> Erasure:
    """The baseline that hopes to forget by not rehearsing (FT in SalUn's tables).

    AdamW, where the tables, and the preset published, have SGD; theirs takes 10 epochs.
    """
    return Erasure(finetune(task, lambda _, retain, progress: task.loss(retain), config.training))
