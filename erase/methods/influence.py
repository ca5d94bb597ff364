"""Influence unlearning: one Newton step that takes the forget set's influence back."""

from dataclasses import dataclass
from functools import reduce
from itertools import islice
from typing import ClassVar

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
    """

    step: Positive[float] = 1.0
    curvature_batches: Positive[int] = 32
    damping: Positive[float] = 1.0
    tuned: ClassVar[tuple[str, tuple[float, ...]]] = ("step", (0.1, 0.3, 1.0, 3.0, 10.0, 30.0))


@register("influence", InfluenceConfig, ClassificationTask)
def influence(task: ClassificationTask, config: InfluenceConfig) -> Erasure:
    """Weights + step * H^-1 g, g being the forget set's loss gradient per retained sample.

    H is the retain set's empirical Fisher matrix of batches, dampened, and inverted exactly by the
    Woodbury identity, where Jia et al. (NeurIPS 2023) take WoodFisher's recursion for it. Their
    code also takes off the retain set's own gradient, which a trained model hardly has.
    """
    weights, seed = task.parameters(), step_seed(task.seed, -1)
    with only_trainable(task, weights):
        batches = task.forget_batches(seed)
        forget = reduce(torch.add, (len(batch) * _gradient(task, batch) for batch in batches))
        retained = islice(task.retain_batches(seed + 1), config.curvature_batches)
        curvature = torch.stack([_gradient(task, batch) for batch in retained])
    influence_of_forget = forget / len(task.retain)
    change = config.step * solve_fisher(curvature, influence_of_forget, config.damping)
    before = {name: weight.detach() for name, weight in weights.items()}
    parts = change.split([weight.numel() for weight in before.values()])
    after = {
        name: weight + part.view_as(weight)
        for (name, weight), part in zip(before.items(), parts, strict=True)
    }
    return Erasure(deltas_between(before, after))


def solve_fisher(gradients: Tensor, vector: Tensor, damping: float) -> Tensor:
    """(G^T G / n + damping I)^-1 v for gradients G [n, d]."""
    count = len(gradients)
    inner = gradients @ gradients.T + count * damping * torch.eye(count, device=gradients.device)
    return (vector - gradients.T @ torch.linalg.solve(inner, gradients @ vector)) / damping


def _gradient(task: ClassificationTask, batch: ClassificationBatch) -> Tensor:
    """The gradient of a batch's mean loss: [d]."""
    weights = list(task.parameters().values())
    gradients = torch.autograd.grad(task.loss(batch), weights)
    return parameters_to_vector(map(widened, gradients))
