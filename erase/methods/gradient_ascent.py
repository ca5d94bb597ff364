"""Gradient ascent: climb the model's own loss on the forget set."""

from dataclasses import dataclass, field, replace

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.tasks.base import TrainedTask
from erase.training.config import TrainedConfig, TrainingConfig, published_sgd
from erase.training.loop import finetune


@dataclass(frozen=True)
class GradientAscentConfig(TrainedConfig):
    """Ascent on the forget set, with nothing to hold the rest in place.

    Args:
        training: the optimizer's settings; few steps, for the loss has no upper bound.
    """

    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(max_train_steps=20))


PUBLISHED = GradientAscentConfig(training=replace(published_sgd(1e-4), max_train_steps=20))


@register("gradient_ascent", GradientAscentConfig, published=PUBLISHED)
def gradient_ascent(task: TrainedTask, config: GradientAscentConfig) -> Erasure:
    """Maximise the forget set's loss (GA; Thudi et al., EuroS&P 2022).

    The preset published has the SGD of the tables of Jia et al. (NeurIPS 2023) and of SalUn; these
    go 5 times through the forget set, we take 20 steps unless told otherwise.
    """
    return Erasure(finetune(task, lambda forget, *_: -task.loss(forget), config.training))
