"""Against relearning: a step learns of the model too that relearning makes of it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from erase.core.precision import gradients, widened
from erase.support.distributed import all_reduce_sum, shards_asked
from erase.tasks.base import Relearning, SomeBatch, StepLoss, TrainedTask
from erase.training.preserve import only_trainable, restored_parameters


def withstanding(
    task: TrainedTask[SomeBatch],
    step_loss: StepLoss[SomeBatch],
    parameters: Mapping[str, nn.Parameter],
) -> StepLoss[SomeBatch]:
    """The loss of a step; where the task asks for it, with what relearning must not undo.

    That is the loss which teaches the wrong answer, of the weights to which some relearning on the
    forget batch led; its slopes are added to those at the weights where it began. The model as it
    is now, before any training, is the teacher. The term is first-order: a second-order one would
    ask for the graphs of all relearning steps at once. Sources: Meta-Unlearning (Gao et al., ICCV
    2025), whose term climbs the model's own loss there, without a bound; and TAR
    (Tamirisa et al., ICLR 2025), first-order too. Raises ValueError where weights lie in shards.
    """
    if not (relearning := task.relearning):
        return step_loss
    if shards_asked():
        raise ValueError("Relearning moves whole weights, which here lie in shards; leave out "
                         "relearning, or the shards.")  # fmt: skip
    base, weights = task.frozen_copy(parameters), list(parameters.values())

    def loss(forget: SomeBatch, retain: SomeBatch, progress: float) -> Tensor:
        with relearned(task, relearning, forget):
            there = task.redirected_loss(forget, base)
            slopes = gradients(there, weights, weights[0].dtype)
        here = step_loss(forget, retain, progress)
        # The loss there, with its slopes at the weights as they are.
        moves = (
            (slope * (widened(weight) - widened(weight.detach()))).sum()
            for slope, weight in zip(slopes, weights, strict=True)
        )
        return sum(moves, here + there.detach())

    return loss


@contextmanager
def relearned(
    task: TrainedTask[SomeBatch], relearning: Relearning, batch: SomeBatch
) -> Iterator[None]:
    """While in force, the weights are what relearning on the batch makes of them.

    On the way out they are as they were, bit for bit.
    """
    weights = relearning.weights()
    moved = list(weights.values())
    with restored_parameters(weights):
        with only_trainable(task, weights), torch.enable_grad():
            for loss in relearning.losses(batch):
                _step(moved, gradients(loss, moved, moved[0].dtype), relearning.rate)
        yield


@torch.no_grad()
def _step(weights: Sequence[Tensor], slopes: Sequence[Tensor], rate: float) -> None:
    """A step down the slopes, averaged over all processes, `rate` long in every tensor."""
    for weight, slope in zip(weights, slopes, strict=True):
        slope = all_reduce_sum(slope)
        size = slope.square().mean().sqrt().clamp_min(torch.finfo(slope.dtype).tiny)
        weight.copy_(widened(weight) - rate * slope / size)
