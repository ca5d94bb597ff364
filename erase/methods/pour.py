"""POUR: the directions of forgotten classes leave what the head of a classifier reads."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from erase.core.activations import capture_inputs
from erase.core.delta import LowRankDelta
from erase.core.projection import Projection, orthogonal
from erase.erasure.erasure import Erasure
from erase.methods import Needs, holding, register
from erase.support.config import Config, Positive
from erase.tasks.classification.task import ClassificationBatch, ClassificationTask
from erase.training.config import TrainedConfig
from erase.training.loop import finetune


@dataclass(frozen=True)
class PourConfig(Config):
    """How much of the classes' directions goes.

    Args:
        strength: 1 removes, 2 reflects.
    """

    strength: Positive[float] = 1.0


@register("pour_p", PourConfig, ClassificationTask)
def pour_p(task: ClassificationTask, config: PourConfig) -> Erasure:
    """Make W (I - P) of the head, P the projection onto the forgotten classes' rows of W.

    POUR-P (arXiv 2511.19339, CVPR 2026) projects what the head reads; folded into its weight that
    gives the same logits, and a forgotten class keeps its bias alone. Features stay as they are.
    The paper forgets one class, we as many as are asked, by the span of their rows. Raises
    ValueError if no class is forgotten as a whole.
    """
    name, head = task.head()
    up, down = _directions(task).edit(head.weight, config.strength)
    return Erasure({f"{name}.weight": LowRankDelta(up.float(), down.float().contiguous())})


def _needs(task: ClassificationTask, config: TrainedConfig) -> Needs:
    needs = holding(teachers=1)(task, config)
    return replace(needs, trained=_below_head(task))


@register("pour_d", TrainedConfig, ClassificationTask, _needs)
def pour_d(task: ClassificationTask, config: TrainedConfig) -> Erasure:
    """Train all below the head until forget samples' features are the base's less their class.

    POUR-D (the same): the squared distance from (I - P) z, z the base's features, on the forget set
    alone. Ours is the mean over features, under AdamW. Raises ValueError as POUR-P does.
    """
    trained, directions = _below_head(task), _directions(task)
    base = task.frozen_copy(trained)

    def step_loss(forget: ClassificationBatch, *_: object) -> Tensor:
        with torch.no_grad():
            wanted = _without(_features(base, forget.inputs), directions)
        return F.mse_loss(_features(task, forget.inputs), wanted)

    # Its loss ends before the head, which shards would wait for.
    return Erasure(finetune(task, step_loss, config.training, parameters=trained, replicas=True))


def _below_head(task: ClassificationTask) -> dict[str, nn.Parameter]:
    """What training changes but for the head."""
    name, _ = task.head()
    own = {f"{name}.weight", f"{name}.bias"}
    return {path: weight for path, weight in task.parameters().items() if path not in own}


def _directions(task: ClassificationTask) -> Projection:
    """The projection onto the rows of the head that belong to the forgotten classes."""
    classes = task.forgotten_classes()
    if not classes:
        raise ValueError("No class is forgotten as a whole, which POUR needs; forget a class.")
    return orthogonal(task.head()[1].weight.detach().cpu()[classes].T)


def _features(task: ClassificationTask, inputs: Tensor) -> Tensor:
    """What the head reads of the inputs: [B, d]."""
    heard: list[Tensor] = []
    name, head = task.head()
    with capture_inputs({name: head}, lambda _, rows: heard.append(rows)):
        task.predict(inputs)
    return heard[-1]


def _without(features: Tensor, removed: Projection) -> Tensor:
    """Features [B, d] less their part along the removed directions."""
    left, right = removed.left.to(features), removed.right.to(features)
    return features - features @ right.T @ left.T
