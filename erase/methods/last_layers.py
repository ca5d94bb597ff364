"""CF-k and EU-k: finetune the last k layers on the retain set, or train them anew."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from erase.core.delta import deltas_between
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.methods.neggrad_plus import penalty_of_change
from erase.support.config import NotNegative, Positive
from erase.tasks.classification.task import ClassificationTask
from erase.training.config import TrainedConfig, published_sgd
from erase.training.loop import StepLoss, finetune, train
from erase.training.preserve import only_trainable, restored_parameters


@dataclass(frozen=True)
class LastLayersConfig(TrainedConfig):
    """How much of the model is retrained.

    Args:
        layers: how many of the last layers that have weight matrices or kernels; the norms and
            biases after the first of them go along.
        l2_penalty: half of this times their squared change from where training begins is added to
            the loss.
    """

    layers: Positive[int] = 2
    l2_penalty: NotNegative[float] = 0.0


PUBLISHED = LastLayersConfig(l2_penalty=0.1, training=published_sgd(0.01, 0.0, 0.0))


@register("cf_k", LastLayersConfig, ClassificationTask, published=PUBLISHED)
def cf_k(task: ClassificationTask, config: LastLayersConfig) -> Erasure:
    """Catastrophic forgetting of the last k layers (Goel et al., 2022).

    AdamW for the task's steps, where they take the recipe of the original. The preset published, of
    eu_k too, is SCRUB's code for it: SGD and a penalty of .1, for 10 epochs of the retain set
    (eu_k: as many as the original had). That trains one block; without the head in cf_k.
    """
    chosen = _parameters(task, config.layers)
    loss, held = _retain_loss(task, config, chosen), config.l2_penalty > 0
    return Erasure(finetune(task, loss, config.training, parameters=chosen, replicas=held))


@register("eu_k", LastLayersConfig, ClassificationTask, holding(copies_of_base=1), PUBLISHED)
def eu_k(task: ClassificationTask, config: LastLayersConfig) -> Erasure:
    """Exact unlearning of the last k layers: as they are before any training, then trained."""
    chosen = _parameters(task, config.layers)
    fresh = task.untrained().parameters()
    with restored_parameters(chosen) as before, only_trainable(task, chosen):
        for name, parameter in chosen.items():
            parameter.data.copy_(fresh[name])
        loss = _retain_loss(task, config, chosen)
        after = train(task, loss, config.training, parameters=chosen)
        return Erasure(deltas_between(before, after))


def _retain_loss(
    task: ClassificationTask, config: LastLayersConfig, chosen: Mapping[str, nn.Parameter]
) -> StepLoss:
    penalty = penalty_of_change(chosen, config.l2_penalty)
    return lambda _, retain, progress: task.loss(retain) + penalty()


def _parameters(task: ClassificationTask, layers: int) -> dict[str, nn.Parameter]:
    """The editable parameters from the last layers' first on, in the model's order."""
    editable = task.parameters()
    names = list(editable)
    starts = [i for i, name in enumerate(names) if editable[name].ndim > 1]
    if layers > len(starts):
        raise ValueError(f"layers is {layers} and only {len(starts)} may change; give fewer.")
    return {name: editable[name] for name in names[starts[-layers] :]}
