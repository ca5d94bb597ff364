"""Influence unlearning: one Newton step that takes the forget set's influence back."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from erase.core.delta import deltas_between
from erase.core.precision import widened
from erase.erasure.erasure import Erasure
from erase.methods import register
from erase.support.config import Config, Positive
from erase.tasks.classification.task import ClassificationBatch, ClassificationTask
from erase.training.loop import step_seed
from erase.training.preserve import only_trainable


@dataclass(frozen=True)
class InfluenceConfig(Config):
    """The step and the curvature it is measured with.

    Args:
        step: how many times the forget set's influence is taken back.
        curvature_batches: batches of the retain set whose gradients make up the Fisher matrix;
            as many gradients are held at once.
        damping: what is added to the Fisher matrix's diagonal.
        inverse: "exact", or "woodfisher", the recursion of the paper's code, which takes a thousand
            single retained samples and no damping.
    """

    step: Positive[float] = 1.0
    curvature_batches: Positive[int] = 32
    damping: Positive[float] = 1.0
    inverse: Literal["exact", "woodfisher"] = "exact"
    tuned: ClassVar[tuple[str, tuple[float, ...]]] = ("step", (0.1, 0.3, 1.0, 3.0, 10.0, 30.0))


PUBLISHED = InfluenceConfig(0.2, inverse="woodfisher")
SINGLE = 1000  # samples of the recursion


@register("influence", InfluenceConfig, ClassificationTask, published=PUBLISHED)
def influence(task: ClassificationTask, config: InfluenceConfig) -> Erasure:
    """Weights + step * H^-1 g, g being the forget set's loss gradient per retained sample.

    H is the retain set's empirical Fisher matrix of batches, dampened, and inverted exactly by the
    Woodbury identity. The preset published is the code of Jia et al. (NeurIPS 2023): WoodFisher's
    recursion over single samples, here shuffled, and the retain set's own gradient taken off g,
    which a trained model hardly has. Their step is the user's to find, .2 if nobody says.
    """
    change = newton_step(task, config)
    before = {name: weight.detach() for name, weight in task.parameters().items()}
    parts = change.split([weight.numel() for weight in before.values()])
    after = {
        name: weight + part.view_as(weight)
        for (name, weight), part in zip(before.items(), parts, strict=True)
    }
    return Erasure(deltas_between(before, after))


def newton_step(task: ClassificationTask, config: InfluenceConfig) -> Tensor:
    """What is added to all weights together: [d]."""
    seed = step_seed(task.seed, -1)
    with only_trainable(task, task.parameters()):
        forget = _summed(task, task.forget_batches(seed))
        if config.inverse == "woodfisher":
            return config.step * _recursive(task, forget, seed + 1)
        retained = islice(task.retain_batches(seed + 1), config.curvature_batches)
        curvature = torch.stack([_gradient(task, batch) for batch in retained])
    return config.step * solve_fisher(curvature, forget / len(task.retain), config.damping)


def _recursive(task: ClassificationTask, forget: Tensor, seed: int) -> Tensor:
    """The code's own step for the forget set's summed gradient: [d]."""
    everything = len(task.forget) + len(task.retain)
    retain = _summed(task, task.retain_batches(seed))
    vector = (forget - retain * (len(task.forget) / len(task.retain))) / everything
    singles = (
        batch.shard(place, len(batch))
        for batch in task.retain_batches(seed)
        for place in range(len(batch))
    )
    return woodfisher((_gradient(task, one) for one in islice(singles, SINGLE + 2)), vector)


def woodfisher(gradients: Iterable[Tensor], vector: Tensor) -> Tensor:
    """The recursion, whose direction stays that of the first gradient; gradients and v are [d]."""
    gradients = iter(gradients)
    first = next(gradients)
    for gradient in gradients:
        inner = first @ gradient
        vector = vector - (vector @ gradient) / (SINGLE + inner) * first
        first = first - inner / (SINGLE + inner) * first
    return vector


def solve_fisher(gradients: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(G^T G / n + damping I)^-1 v for gradients G [n, d]."""
    count = len(gradients)
    inner = gradients @ gradients.T + count * damping * torch.eye(count, device=gradients.device)
    return (vector - gradients.T @ torch.linalg.solve(inner, gradients @ vector)) / damping


def _summed(task: ClassificationTask, batches: Iterable[ClassificationBatch]) -> Tensor:
    """The gradient of the sum of all samples' losses: [d]."""
    return reduce(torch.add, (len(batch) * _gradient(task, batch) for batch in batches))


def _gradient(task: ClassificationTask, batch: ClassificationBatch) -> Tensor:
    """The gradient of a batch's mean loss: [d]."""
    weights = list(task.parameters().values())
    gradients = torch.autograd.grad(task.loss(batch), weights)
    return parameters_to_vector(map(widened, gradients))
