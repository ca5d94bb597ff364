"""NegGrad+: descend on the retain set while climbing on the forget set."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from erase.erasure.erasure import Erasure
from erase.methods import Needs, register, usual_training
from erase.support.config import NotNegative, PartShare
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig, published_sgd
from erase.training.loop import finetune


@dataclass(frozen=True)
class NegGradConfig(TrainedConfig):
    """The balance of descent and ascent.

    Args:
        retain_share: weight of the retain set's loss; the forget set's has the rest.
        l2_penalty: half of this times the squared change of all weights is added to the former.
    """

    retain_share: PartShare = 0.95
    l2_penalty: NotNegative[float] = 0.0


PUBLISHED = NegGradConfig(l2_penalty=0.1, training=published_sgd(0.01, 0.0, 0.0))


def _needs(task: TrainedTask, config: NegGradConfig) -> Needs:
    copies = int(config.l2_penalty > 0)
    return Needs(task.parameters(), usual_training(task, config), teachers=copies)


@register("neggrad_plus", NegGradConfig, needs=_needs, published=PUBLISHED)
def neggrad(task: TrainedTask, config: NegGradConfig) -> Erasure:
    """Minimise share * retain loss - (1 - share) * forget loss (Kurmanji et al., NeurIPS 2023).

    The share is their code's. Its SGD and its penalty (both of the small runs) are the preset
    published; theirs takes 10 epochs of the retain set, and starts the forget set over as it ends.
    """
    share, penalty = config.retain_share, penalty_of_change(task.parameters(), config.l2_penalty)

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        return share * (task.loss(retain) + penalty()) - (1 - share) * task.loss(forget)

    return Erasure(finetune(task, step_loss, config.training, replicas=config.l2_penalty > 0))


def penalty_of_change(
    weights: Mapping[str, nn.Parameter], l2_penalty: float
) -> Callable[[], Tensor | float]:
    """Half of `l2_penalty` times the squared change, [], of the weights from what they are now."""
    if not l2_penalty:
        return lambda: 0.0
    pairs = [(weight, weight.detach().clone()) for weight in weights.values()]

    def penalty() -> Tensor:
        changes = [(weight - before).square().sum() for weight, before in pairs]
        return l2_penalty / 2 * torch.stack(changes).sum()

    return penalty
