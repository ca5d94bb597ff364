"""UNDO: noise takes part of a classifier, and a student learns anew what is retained."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from erase.core.delta import deltas_between
from erase.erasure.erasure import Erasure
from erase.methods import holding, register
from erase.methods.pour import PourConfig, pour_p
from erase.support.config import Config, Share
from erase.tasks.classification.fit import fit, outputs_of
from erase.tasks.classification.task import ClassificationTask


@dataclass(frozen=True)
class UndoConfig(Config):
    """How much gives way to noise, and how long the student learns.

    Args:
        folder: the erasure whose model teaches; by default pour_p's where whole classes are
            forgotten, else the base teaches.
        noise: share of a fresh model's weights; the rest is the base's.
        effort: share of the epochs that the original was trained for, one at least.
    """

    folder: str = ""
    noise: Share = 0.6
    effort: Share = 1 / 3


class Taught(Dataset):
    """Samples of a set, each with a teacher's answer for its label."""

    def __init__(self, samples: Dataset, answers: Tensor):
        self._samples, self._answers = samples, answers

    def __len__(self) -> int:
        """How many samples."""
        return len(self._answers)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """A sample and the teacher's probabilities [classes]."""
        return self._samples[index][0], self._answers[index]


@register("undo", UndoConfig, ClassificationTask, holding(copies_of_base=1))
def undo(task: ClassificationTask, config: UndoConfig) -> Erasure:
    """Mix a fresh model into the base, and distil a teacher's answers on the retain set alone.

    Unlearn, Noise, Distill on Outputs (Lee et al., NeurIPS 2025, arXiv 2506.06278, section 4, of
    language models); the noise is their untrained model's weights, the loss the cross-entropy with
    the teacher's probabilities, which has the gradient of their divergence. Training is the
    original's recipe, cut short, where theirs has steps of its own; running statistics of norms
    are part of it. The student never sees the forget set.
    """
    retained = task.subset(task.retain)
    with _teacher(task, config):
        answers = outputs_of(task.components["model"], retained).logits.softmax(1)
    student = task.untrained().components["model"]
    mix_(student, task.components["model"].state_dict(), config.noise)
    recipe = replace(task.recipe, epochs=max(1, round(config.effort * task.recipe.epochs)))
    fit(student, Taught(retained, answers), recipe, task.seed)
    return Erasure(deltas_between(task.state(), task.state(student)))


def _teacher(task: ClassificationTask, config: UndoConfig) -> AbstractContextManager[object]:
    """While in force, the task's model is the teacher."""
    if config.folder:
        return Erasure.from_pretrained(config.folder).apply(task.components)
    forgotten = task.forgotten_classes()
    return pour_p(task, PourConfig()).apply(task.components) if forgotten else nullcontext()


@torch.no_grad()
def mix_(fresh: nn.Module, base: Mapping[str, Tensor], noise: float) -> None:
    """Make each of a fresh model's tensors (1 - noise) of the base's and noise of its own."""
    for name, tensor in fresh.state_dict().items():
        if tensor.is_floating_point():
            tensor.lerp_(base[name].to(tensor), 1 - noise)
