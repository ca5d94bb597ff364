"""Boundary unlearning: forgotten samples cross the nearest boundary, or get their own class."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.seeds import folded
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.support.config import Positive
from erase.tasks.classification.task import ClassificationBatch, ClassificationTask
from erase.training.config import TrainedConfig, published_sgd
from erase.training.loop import finetune


@dataclass(frozen=True)
class BoundaryShrinkConfig(TrainedConfig):
    """The step over the boundary.

    Args:
        step: length of the sign step of each input value, in input units.
        nearest: the strongest class after it: the strongest wrong one, or any, be it the true one.
        pixels: whether inputs are pictures in [0, 1], so that what is stepped stays there, in 256
            levels.
    """

    step: Positive[float] = 0.1
    nearest: Literal["wrong", "any"] = "wrong"
    pixels: bool = False


PUBLISHED = BoundaryShrinkConfig(0.1, "any", True, training=published_sgd(1e-5, 0.9, 0.0))


@register(
    "boundary_shrink", BoundaryShrinkConfig, ClassificationTask, holding(teachers=1), PUBLISHED
)
def boundary_shrink(task: ClassificationTask, config: BoundaryShrinkConfig) -> Erasure:
    """Teach the forget set the wrong class nearest to it (Chen et al., CVPR 2023).

    The nearest class is the base's strongest wrong one after a step against the true label, of the
    same .1. Their code, which the preset published follows, takes the strongest, be it the true
    one, of pictures clamped to [0, 1] and rounded; it knows CIFAR-10's mean and deviation, here
    inputs have to be pictures as they are, or ValueError. Theirs runs 10 epochs in training mode.
    """
    base = task.frozen_copy()

    def step_loss(forget: ClassificationBatch, *_: object) -> Tensor:
        nearest = nearest_classes(base, forget, config)
        return F.cross_entropy(task.predict(forget.inputs), nearest)

    return Erasure(finetune(task, step_loss, config.training))


def nearest_classes(
    base: ClassificationTask, forget: ClassificationBatch, config: BoundaryShrinkConfig
) -> Tensor:
    """The class across the boundary [B]; ValueError for inputs that are not pixels, if asked."""
    inputs = forget.inputs.clone()
    if config.pixels and not 0 <= float(inputs.min()) <= float(inputs.max()) <= 1:
        raise ValueError("pixels needs inputs in [0, 1], and these go beyond; leave it out.")
    loss = F.cross_entropy(base.predict(inputs.requires_grad_()), forget.labels)
    (gradient,) = torch.autograd.grad(loss, inputs)
    with torch.no_grad():
        stepped = inputs + config.step * gradient.sign()
        if config.pixels:
            stepped = (stepped.clamp(0, 1) * 255).round() / 255
        logits = base.predict(stepped)
        if config.nearest == "wrong":
            logits = logits.scatter(1, forget.labels[:, None], -torch.inf)
        return logits.argmax(1)


@register("boundary_expand", TrainedConfig, ClassificationTask)
def boundary_expand(task: ClassificationTask, config: TrainedConfig) -> Erasure:
    """Assign the forget set to an extra class, then drop that class (Chen et al., CVPR 2023).

    AdamW, where their code has SGD.
    """
    _, head = task.head()
    features: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    with torch.random.fork_rng():
        torch.manual_seed(folded(task.seed))
        extra = nn.Linear(head.in_features, 1, device=head.weight.device, dtype=head.weight.dtype)
    head.add_module("extra_class", extra)

    def step_loss(forget: ClassificationBatch, *_: object) -> Tensor:
        features.clear()
        logits = task.predict(forget.inputs)
        widened = torch.cat([logits, extra(features[-1])], 1)
        return F.cross_entropy(widened, torch.full_like(forget.labels, logits.shape[1]))

    try:
        deltas = finetune(task, step_loss, config.training, replicas=True)
    finally:
        handle.remove()
        del head.extra_class
    return Erasure({key: delta for key, delta in deltas.items() if ".extra_class." not in key})
