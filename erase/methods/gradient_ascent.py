"""Gradient ascent: climb the model's own loss on the forget set."""

from dataclasses import dataclass, field

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.tasks.base import TrainedTask
from erase.training.config import TrainedConfig, TrainingConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class GradientAscentConfig(TrainedConfig):
    """Ascent on the forget set, with nothing to hold the rest in place.

    Args:
        training: the optimizer's settings; few steps, for the loss has no upper bound.
    """

    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_train_steps=20))


@register("gradient_ascent", GradientAscentConfig)
def gradient_ascent(task: TrainedTask, config: GradientAscentConfig) -> Erasure:
    """Maximise the forget set's loss (GA; Thudi et al., EuroS&P 2022).

    AdamW for 20 steps, where SalUn's tables have SGD (1e-4) for 5 epochs of the forget set.
    """
    return Erasure(finetune(task, lambda forget, *_: -task.loss(forget), config.training))
