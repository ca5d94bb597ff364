"""One call from a classifier to the forget set that is hardest or easiest to forget."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from erase.core.process import own_settings
from erase.methods import get_method
from erase.runs.classify import ClassifierRun, build_task, data_of, load_or_train
from erase.runs.state import options_of
from erase.support.config import NotNegative
from erase.support.distributed import launched
from erase.support.files import check_file_writable, expanded
from erase.tasks.classification.forget_sets import (
    Tail,
    Unit,
    chooser,
    losses_of,
    worst_case,
    write_indices,
)
from erase.tasks.classification.rows import labels_of
from erase.tasks.classification.task import ClassificationTask


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


@own_settings()
def choose_forget_set(run: ForgetSetRun, output: str | Path) -> list[int]:
    """Write the indices of training samples of lowest or highest loss in the original, as JSON.

    With `rounds` above 0, lowest in sum with as many models that the method unlearned of the sets
    so far. Raises ValueError on bad input, before any work.
    """
    check_file_writable(Path(output))
    options, data = options_of(run, ClassificationTask), data_of(run.classifier)
    choose = chooser(labels_of(data.train), run.count, run.tail, run.unit)
    original = load_or_train(run.classifier, data, run.device)

    def unlearn(indices: Sequence[int]) -> nn.Module:
        task = build_task(run, copy.deepcopy(original), data, indices)
        unlearned = copy.deepcopy(original)
        get_method(run.method)(task, options).apply({"model": unlearned})
        return unlearned

    chosen = worst_case(losses_of(original, data.train), unlearn, data.train, choose, run.rounds)
    if not launched().is_main_process:
        return []
    write_indices(chosen, expanded(output))
    return chosen
