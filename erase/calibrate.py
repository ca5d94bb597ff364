"""One learning-rate search for every method, on a validation split of the training data."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from erase.evaluate.classification import outputs_of
from erase.methods import get_method
from erase.tasks.classification import ClassificationTask

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
REFUSED = 1e9


@dataclass(frozen=True)
class Calibration:
    """The chosen learning rate and every one's average gap to the retrained model, in points."""

    method: str
    learning_rate: float
    gaps: dict[float, float]

    def __str__(self) -> str:
        tried = ", ".join(f"{rate:g}: {gap:.2f}" for rate, gap in self.gaps.items())
        return f"{self.method}: {self.learning_rate:g} of average gaps {tried}"


def hold_out(retain: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the retain set's indices into those to train on and those to validate on."""
    order = torch.randperm(len(retain), generator=torch.Generator().manual_seed(seed)).tolist()
    count = max(1, int(share * len(retain)))
    held = sorted(retain[i] for i in order[:count])
    return sorted(retain[i] for i in order[count:]), held


def calibrate(
    method: str,
    task: ClassificationTask,
    retrained: nn.Module,
    validation: Dataset,
    config: Any = None,
    rates: Sequence[float] = RATES,
) -> Calibration:
    """Try every rate and choose the one nearest to `retrained`.

    Nearest means the smallest mean gap of forget, retain and validation accuracy. `validation` is
    training data that neither the task, its model nor `retrained` has seen; a test set must never
    be it. Raises ValueError for methods without training settings, and if all rates are refused.
    """
    chosen = get_method(method)
    config = config or chosen.config()
    if not hasattr(config, "training"):
        raise ValueError(f"The method {method} has no learning rate to calibrate.")
    sets = (task.subset(task.forget), task.subset(task.retain), validation)
    goal = _accuracies(retrained, sets)
    gaps = {}
    for rate in rates:
        training = dataclasses.replace(config.training, learning_rate=rate, checkpoints="")
        gaps[rate] = _gap(task, chosen, dataclasses.replace(config, training=training), sets, goal)
    if min(gaps.values()) == REFUSED:
        raise ValueError(f"The method {method} refuses every learning rate of {list(rates)}.")
    return Calibration(method, min(gaps, key=gaps.__getitem__), gaps)


def _gap(
    task: ClassificationTask,
    method: Callable[[ClassificationTask, Any], Any],
    config: Any,
    sets: Sequence[Dataset],
    goal: Sequence[float],
) -> float:
    try:
        erasure = method(task, config)
    except ValueError:  # the loss left the finite numbers: this rate is too high
        return REFUSED
    with erasure.apply(task.components):
        found = _accuracies(task.components["model"], sets)
    return sum(abs(a - b) for a, b in zip(found, goal, strict=True)) / len(goal)


def _accuracies(model: nn.Module, sets: Sequence[Dataset]) -> list[float]:
    return [outputs_of(model, dataset).accuracy() for dataset in sets]
