"""CF-k and EU-k: finetune the last k layers on the retain set, or train them anew."""

from dataclasses import dataclass

from torch import nn

from erase.core.delta import deltas_between
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.support.config import Positive
from erase.tasks.classification.task import ClassificationTask
from erase.training.config import TrainedConfig
from erase.training.loop import StepLoss, finetune, train
from erase.training.preserve import only_trainable, restored_parameters


@dataclass(frozen=True)
class LastLayersConfig(TrainedConfig):
    """How much of the model is retrained.

    Args:
        layers: how many of the last layers that have weight matrices or kernels; the norms and
            biases after the first of them go along.
    """

    layers: Positive[int] = 2


@register("cf_k", LastLayersConfig, ClassificationTask)
def cf_k(task: ClassificationTask, config: LastLayersConfig) -> Erasure:
    """Catastrophic forgetting of the last k layers (Goel et al., 2022).

    AdamW for the task's steps, where they take the recipe of the original.
    """
    chosen = _parameters(task, config.layers)
    loss = _retain_loss(task)
    return Erasure(finetune(task, loss, config.training, parameters=chosen))


@register("eu_k", LastLayersConfig, ClassificationTask, holding(copies_of_base=1))
def eu_k(task: ClassificationTask, config: LastLayersConfig) -> Erasure:
    """Exact unlearning of the last k layers: as they are before any training, then trained."""
    chosen = _parameters(task, config.layers)
    fresh = task.untrained().parameters()
    with restored_parameters(chosen) as before, only_trainable(task, chosen):
        for name, parameter in chosen.items():
            parameter.data.copy_(fresh[name])
        after = train(task, _retain_loss(task), config.training, parameters=chosen)
        return Erasure(deltas_between(before, after))


def _retain_loss(task: ClassificationTask) -> StepLoss:
    return lambda _, retain, progress: task.loss(retain)


def _parameters(task: ClassificationTask, layers: int) -> dict[str, nn.Parameter]:
    """The editable parameters from the last layers' first on, in the model's order."""
    editable = task.parameters()
    names = list(editable)
    starts = [i for i, name in enumerate(names) if editable[name].ndim > 1]
    if layers > len(starts):
        raise ValueError(f"layers is {layers} and only {len(starts)} may change; give fewer.")
    return {name: editable[name] for name in names[starts[-layers] :]}
