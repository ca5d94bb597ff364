"""Retrain: the oracle, trained from scratch on the retain set alone."""

from dataclasses import dataclass, replace

from erase.core.delta import deltas_between
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.support.config import Config, NotNegative
from erase.tasks.classification.fit import fit
from erase.tasks.classification.task import ClassificationTask


@dataclass(frozen=True)
class RetrainConfig(Config):
    """The recipe the original was trained with.

    Args:
        epochs: passes through the retain set, 0 for as many as the original had.
    """

    epochs: NotNegative[int] = 0


@register("retrain", RetrainConfig, ClassificationTask, holding(copies_of_base=1))
def retrain(task: ClassificationTask, config: RetrainConfig) -> Erasure:
    """What never learning the forget set gives; running statistics of norms are part of it."""
    fresh = task.untrained().components["model"]
    recipe = replace(task.recipe, epochs=config.epochs or task.recipe.epochs)
    fit(fresh, task.subset(task.retain), recipe, task.seed)
    return Erasure(deltas_between(task.state(), task.state(fresh)))
