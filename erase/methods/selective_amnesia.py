"""Selective amnesia: relearn the concept as its anchor, held by elastic weights and replay."""

from dataclasses import dataclass

from torch import Tensor

from erase.core.saliency import accumulate
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.methods.salun import relabelling_loss
from erase.support.distributed import all_reduce_sum, shard_of
from erase.tasks.base import Batch, TrainedTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune, step_seed
from erase.training.preserve import only_trainable


@dataclass(frozen=True)
class SelectiveAmnesiaConfig(TrainedConfig):
    """Elasticity, replay and training.

    Args:
        elasticity: weight of the Fisher-weighted squared change, in units of the mean Fisher.
        replay: weight of staying close to the base on the retain set.
    """

    elasticity: float = 1.0
    replay: float = 1.0


@register(
    "selective_amnesia", SelectiveAmnesiaConfig,
    needs=holding(teachers=1, extra_per_weight=8),  # the Fisher diagonal, the start
)  # fmt: skip
def selective_amnesia(task: TrainedTask, config: SelectiveAmnesiaConfig) -> Erasure:
    """Continual learning turned round (Heng and Soh, NeurIPS 2023).

    The Fisher diagonal is the retain set's, of whole batches at one time step, over its own mean.
    Theirs is of single pictures, each's gradient summed over all 1,000 time steps before it is
    squared, and is not divided; its weight is 50. They teach a surrogate's pictures and replay
    others, with the model's own loss, all of the UNet, for 200 epochs of 1,000 pictures at 1e-5; we
    the base's predictions for the anchor and on the retain set. So there is no preset.
    """
    task.prepare()
    weights = task.parameters()
    with only_trainable(task, weights):
        batches = task.retain_batches(step_seed(task.seed, -1))
        fisher = accumulate(weights, map(task.loss, shard_of(batches)), "fisher", all_reduce_sum)
    whole = sum(float(scores.double().sum()) for scores in fisher.values())
    mean = whole / sum(scores.numel() for scores in fisher.values())
    start = {name: weight.detach().clone() for name, weight in weights.items()}
    relabelled = relabelling_loss(task, "frozen", config.replay)

    def step_loss(forget: Batch, retain: Batch, progress: float) -> Tensor:
        stretch = sum(
            (fisher[name] / mean * (weight - start[name]).square()).sum()
            for name, weight in weights.items()
        )
        return relabelled(forget, retain, progress) + config.elasticity * stretch

    return Erasure(finetune(task, step_loss, config.training, replicas=True))
