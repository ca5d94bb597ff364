"""Retrain: the oracle, trained from scratch on the retain set alone."""

from dataclasses import dataclass, field

from erase.classifiers import FitConfig, fit
from erase.core.delta import difference
from erase.erasure import Erasure
from erase.methods import register
from erase.tasks.classification import ClassificationTask


@dataclass(frozen=True)
class RetrainConfig:
    """The recipe the original was trained with.

    Args:
        fit: epochs, learning rate and batch size.
    """

    fit: FitConfig = field(default_factory=FitConfig)


@register("retrain", RetrainConfig, ClassificationTask)
def retrain(task: ClassificationTask, config: RetrainConfig) -> Erasure:
    """What never learning the forget set gives; running statistics of norms are part of it."""
    fresh = task.untrained().components["model"]
    fit(fresh, task.subset(task.retain), config.fit, task.seed)
    return Erasure(difference(task.state(), task.state(fresh)))
