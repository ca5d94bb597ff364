"""SSD: dampen the weights that matter far more to the forget set than to all of the data."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from erase.core.delta import deltas_between
from erase.core.precision import widened
from erase.core.saliency import Estimator, accumulate
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.support.config import Config, Positive
from erase.tasks.classification.task import ClassificationBatch, ClassificationTask
from erase.training.loop import step_seed
from erase.training.preserve import only_trainable

Loss = Callable[[ClassificationBatch], Tensor]


@dataclass(frozen=True)
class SSDConfig(Config):
    """When a weight counts as the forget set's, and how strongly it is dampened.

    Args:
        selection: a weight is dampened if its importance to the forget set is over this many times
            that to all data (the paper's alpha). Of samples it is never more than all data are
            times the forget set, which is why a tenth of the data needs less than 10.
        dampening: it is multiplied by this times the ratio of the two, at most 1 (lambda).
        weigh: whether each sample has its own gradient, or only each batch, which is quicker.
    """

    selection: Positive[float] = 3.0
    dampening: Positive[float] = 1.0
    weigh: Literal["samples", "batches"] = "samples"
    tuned: ClassVar[tuple[str, tuple[float, ...]]] = (
        "selection",
        (2.0, 3.0, 5.0, 10.0, 30.0, 100.0),
    )


@dataclass(frozen=True)
class LFSSDConfig(SSDConfig):
    """The same, with the paper's alpha and its code's batches."""

    selection: Positive[float] = 10.0
    weigh: Literal["samples", "batches"] = "batches"
    tuned: ClassVar[tuple[str, tuple[float, ...]]] = (
        "selection",
        (2.0, 5.0, 10.0, 20.0, 50.0, 100.0),
    )


@register(
    "ssd", SSDConfig, ClassificationTask, holding(extra_per_weight=8),
    published=SSDConfig(10.0, weigh="batches"),
)  # fmt: skip
def ssd(task: ClassificationTask, config: SSDConfig) -> Erasure:
    """Selective synaptic dampening (Foster, Schoepf and Brintrup, AAAI 2024).

    Importance is the mean over samples of the squared gradient of the sample's loss, the diagonal
    of the Fisher matrix. Their code takes batches for samples, with alpha 10: a short last batch
    then counts as much as any, and which samples fall in it decides.
    """
    return _dampened(task, config, task.loss, "fisher")


@register("lfssd", LFSSDConfig, ClassificationTask, holding(extra_per_weight=8))
def lfssd(task: ClassificationTask, config: LFSSDConfig) -> Erasure:
    """SSD without labels: importance is the gradient of the squared norm of the logits.

    Of batches, as in their code, where ssd takes samples: magnitudes do not grow as squares do.
    """

    def energy(batch: ClassificationBatch) -> Tensor:
        return task.predict(batch.inputs).square().sum(1).mean()

    return _dampened(task, config, energy, "abs_sum")


def _dampened(
    task: ClassificationTask, config: SSDConfig, loss: Loss, estimator: Estimator
) -> Erasure:
    seed = step_seed(task.seed, -1)
    sets = task.forget_batches(seed), task.training_batches(seed + 1)
    forget, overall = (
        importance(task, _weighed(batches, config), loss, estimator) for batches in sets
    )
    weights = task.parameters()
    before = {name: weight.detach() for name, weight in weights.items()}
    after = {
        name: widened(weight) * dampening(forget[name], overall[name], config)
        for name, weight in before.items()
    }
    return Erasure(deltas_between(before, after))


def dampening(forget: Tensor, overall: Tensor, config: SSDConfig) -> Tensor:
    """min(lambda * overall / forget, 1) where forget > alpha * overall, 1 elsewhere."""
    factor = (config.dampening * overall / forget.clamp_min(1e-30)).clamp(max=1.0)
    return torch.where(forget > config.selection * overall, factor, 1.0)


def _weighed(
    batches: Iterable[ClassificationBatch], config: SSDConfig
) -> Iterator[ClassificationBatch]:
    """The batches, or every sample as a batch of its own."""
    for batch in batches:
        parts = len(batch) if config.weigh == "samples" else 1
        yield from (batch.shard(place, parts) for place in range(parts))


def importance(
    task: ClassificationTask,
    batches: Iterable[ClassificationBatch],
    loss: Loss,
    estimator: Estimator,
) -> dict[str, Tensor]:
    """Every weight's importance to a loss, the mean over batches."""
    weights, seen = task.parameters(), 0

    def losses() -> Iterator[Tensor]:
        nonlocal seen
        for batch in batches:
            seen += 1
            yield loss(batch)

    with only_trainable(task, weights):
        return {
            name: score / seen for name, score in accumulate(weights, losses(), estimator).items()
        }
