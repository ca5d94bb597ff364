"""Bias suppression: the baseline that shows what an accuracy alone is worth."""

from dataclasses import dataclass

import torch

from erase.core.delta import DenseDelta
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.support.config import Config
from erase.tasks.classification.task import ClassificationTask


@dataclass(frozen=True)
class BiasSuppressionConfig(Config):
    """How far the forgotten classes' biases are lowered.

    Args:
        amount: what is taken off each.
    """

    amount: float = 1e4


@register("bias_suppression", BiasSuppressionConfig, ClassificationTask)
def bias_suppression(task: ClassificationTask, config: BiasSuppressionConfig) -> Erasure:
    """Take `amount` off the head's bias of every class that is forgotten as a whole.

    Nothing but the answers changes: all the model knew is still there. Raises ValueError if no
    class is forgotten as a whole, or the head has no bias.
    """
    name, head = task.head()
    classes = task.forgotten_classes()
    if not classes:
        raise ValueError("No class is forgotten as a whole; bias_suppression needs one.")
    if head.bias is None:
        raise ValueError(f"The head {name} has no bias to lower; choose another method.")
    change = torch.zeros(len(head.bias))
    change[classes] = -config.amount
    return Erasure({f"{name}.bias": DenseDelta(change)})
