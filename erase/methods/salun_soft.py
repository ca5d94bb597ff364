"""SalUn-soft: no mask, but a penalty that lets only weights change that must."""

from dataclasses import dataclass

from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.methods.salun import (
    RelabellingConfig,
    relabelling_loss,
    relabelling_needs,
    settings_for_teacher,
)
from erase.support.config import NotNegative
from erase.tasks.base import TrainedTask
from erase.training.loop import finetune


@dataclass(frozen=True)
class SalUnSoftConfig(RelabellingConfig):
    """The sparsity of SalUn-soft.

    Args:
        sparsity: weight of the l1 penalty at the first step, in steps of the learning rate; it
            falls to 0 at the last one.
    """

    keeps = False
    sparsity: NotNegative[float] = 0.5


@register("salun_soft", SalUnSoftConfig, needs=relabelling_needs)
def salun_soft(task: TrainedTask, config: SalUnSoftConfig) -> Erasure:
    """SalUn's objective plus a falling l1 penalty on the change (Fan et al., ICLR 2024).

    A proximal step in units of the learning rate. Their code shrinks by the change that a falling
    share of the weights stays below, and measures changes anew from each epoch's start.
    It reads that share from an option it does not have, so there is no preset.
    """
    loss = relabelling_loss(task, config.teacher, config.retain_weight)
    training = settings_for_teacher(task, config)
    deltas = finetune(task.with_redirection_pictures(), loss, training, sparsity=config.sparsity)
    total = sum(parameter.numel() for parameter in task.parameters().values())
    changed = sum(int(delta.dense().count_nonzero()) for delta in deltas.values())
    return Erasure(deltas, {"mask": {"kept": changed, "of": total}})
