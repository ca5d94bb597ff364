"""One call from a classifier to the forget set that is hardest or easiest to forget."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from erase.methods import get_method
from erase.runs.classify import ClassifierRun, build_task, data_of, load_or_train
from erase.runs.state import carry_out, options_of
from erase.support.config import NotNegative
from erase.tasks.classification.datasets import Data
from erase.tasks.classification.forget_sets import (
    Choose,
    Tail,
    Unit,
    chooser,
    losses_of,
    worst_case,
    write_indices,
)
from erase.tasks.classification.rows import labels_of
from erase.tasks.classification.task import ClassificationTask

# What chooses samples of a data set by the losses of the classifier that learnt it.
OpenedTrainingSet = tuple[Data, nn.Module, Choose]


@dataclass(frozen=True, kw_only=True)
class ForgetSetRun(ClassifierRun):
    """What to choose, from which classifier's training set, and against which method.

    Args:
        count: how many of the unit.
        unit: balanced takes of all classes alike, classes takes whole ones.
        tail: of the original's loss.
        rounds: how often the method's worst case is looked for; 0 takes the original's losses.
    """

    forget: str = field(default="", init=False)  # it is what is looked for
    count: int
    unit: Unit = "samples"
    tail: Tail = "lowest"
    rounds: NotNegative[int] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rounds and self.tail == "highest":
            raise ValueError(
                "Rounds look for the lowest losses; leave out rounds, or tail highest."
            )


def choose_forget_set(run: ForgetSetRun, output: str | Path) -> list[int]:
    """Write the indices of training samples of lowest or highest loss in the original, as JSON.

    With `rounds` above 0, lowest in sum with as many models that the method unlearned of the sets
    so far. Of several processes the first returns them, the others none. Raises ValueError on bad
    input, before any work.
    """
    method, options = get_method(run.method), options_of(run, ClassificationTask)

    def open_() -> OpenedTrainingSet:
        data = data_of(run.classifier)
        choose = chooser(labels_of(data.train), run.count, run.tail, run.unit)
        return data, load_or_train(run.classifier, data, run.device), choose

    def work(opened: OpenedTrainingSet) -> list[int]:
        data, original, choose = opened

        def unlearn(indices: Sequence[int]) -> nn.Module:
            task = build_task(run, copy.deepcopy(original), data, indices)
            unlearned = copy.deepcopy(original)
            method(task, options).apply({"model": unlearned})
            return unlearned

        losses = losses_of(original, data.train)
        return worst_case(losses, unlearn, data.train, choose, run.rounds)

    def write(_: OpenedTrainingSet, chosen: list[int], file: Path) -> list[int]:
        write_indices(chosen, file)
        return chosen

    return carry_out(output, None, open_, work, write) or []
