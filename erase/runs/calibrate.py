"""One search for every method's main setting, on a validation split of the training data."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, Subset

from erase.core.delta import NotFiniteError
from erase.core.process import own_settings
from erase.core.seeds import seeded
from erase.evaluate.classifiers.gaps import GAPS, Split, gap_figures
from erase.methods import get_method
from erase.runs.classify import ClassifierRun, build_task, data_of, load_or_train, retrained
from erase.runs.state import options_of
from erase.support.config import PartShare
from erase.support.distributed import launched
from erase.tasks.classification.fit import size_of
from erase.tasks.classification.forget_sets import forget_indices
from erase.tasks.classification.task import ClassificationTask
from erase.training.checkpoint import checkpoints_in
from erase.training.config import TrainedConfig

RATE, RATES = "training.learning_rate", (1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
REFUSED = 1e9


@dataclass(frozen=True)
class CalibrationRun(ClassifierRun):
    """The run to find a setting for.

    Args:
        share: of the retain set, held out to choose by.
    """

    share: PartShare = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        tuned_setting(self.method, self.method_config or get_method(self.method).config())


@dataclass(frozen=True)
class Calibration:
    """The chosen value of a setting, and every one's average gap to Retrain, in points."""

    method: str
    setting: str
    value: float
    gaps: dict[float, float]

    def __str__(self) -> str:
        tried = ", ".join(f"{value:g}: {gap:.2f}" for value, gap in self.gaps.items())
        return f"{self.method}: {self.setting} {self.value:g} of average gaps {tried}"


@own_settings()
def calibrated(run: CalibrationRun) -> Calibration | None:
    """Search on an original and a Retrain of their own that never see the share held out.

    Of several processes the first returns what was found. Raises ValueError on bad input, before
    any work.
    """
    options = options_of(run, ClassificationTask)
    classifier = replace(run.classifier, weights="")
    data = data_of(classifier)
    forget = forget_indices(run.forget, data, run.seed)
    retain = sorted(set(range(size_of(data.train))) - set(forget))
    used, held = hold_out(retain, run.share, run.seed)
    validation = Subset(data.train, held)
    Split(data.train, forget, used, validation)  # refused before anything is trained
    rows = sorted({*forget, *used})
    seen = replace(data, train=Subset(data.train, rows))
    places = {row: place for place, row in enumerate(rows)}
    original = load_or_train(classifier, seen, run.device)
    task = build_task(run, original, seen, [places[row] for row in forget])
    found = calibrate(run.method, task, retrained(task), validation, options)
    return found if launched().is_main_process else None


def hold_out(retain: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Split the retain set's indices into those to train on and those to validate on.

    Raises ValueError if one would be empty.
    """
    order = torch.randperm(len(retain), generator=seeded(seed)).tolist()
    count = max(1, int(share * len(retain)))
    if count == len(retain):
        raise ValueError(f"A share of {share} holds out all {count} samples; give a smaller one.")
    held = sorted(retain[i] for i in order[:count])
    return sorted(retain[i] for i in order[count:]), held


def calibrate(
    method: str,
    task: ClassificationTask,
    retrained: nn.Module,
    validation: Dataset,
    config: Any = None,
    values: Sequence[float] = (),
) -> Calibration:
    """Try the values of the method's own setting and choose the one nearest to `retrained`.

    The setting is the learning rate, or what the config names as `tuned`; six values each by
    default. Nearest means the smallest average gap of forget, retain and validation accuracy and
    MIA-efficacy. `validation` is training data that neither the task, its model nor `retrained` has
    seen; a test set must never be it. Raises ValueError for methods with nothing to set, and if all
    values are refused.
    """
    config = config or get_method(method).config()
    setting, usual = tuned_setting(method, config)
    split = Split(task.dataset, task.forget, task.retain, validation)
    goal = gap_figures(retrained, split)
    gaps = {
        value: gap_of(method, task, with_setting(config, setting, value), split, goal)
        for value in values or usual
    }
    if min(gaps.values()) == REFUSED:
        raise ValueError(f"{method} breaks at every {setting} of {list(gaps)}; give others.")
    return Calibration(method, setting, min(gaps, key=gaps.__getitem__), gaps)


def tuned_setting(method: str, config: Any) -> tuple[str, Sequence[float]]:
    """What is searched and its usual values; ValueError if there is nothing, or no classifier's."""
    if not issubclass(ClassificationTask, get_method(method).task):
        raise ValueError(f"The method {method} does not serve classifiers; choose another method.")
    setting, usual = getattr(config, "tuned", (RATE, RATES))
    if setting == RATE and not isinstance(config, TrainedConfig):
        raise ValueError(f"The method {method} has nothing to calibrate; choose another method.")
    return setting, usual


def with_setting(config: Any, setting: str, value: Any) -> Any:
    """The config with another value of a field, which may be a config's in it: "training.steps"."""
    outer, _, inner = setting.partition(".")
    value = with_setting(getattr(config, outer), inner, value) if inner else value
    return replace(config, **{outer: value})


def gap_of(
    method: str, task: ClassificationTask, config: Any, split: Split, goal: dict[str, float]
) -> float:
    """The average gap of what the method makes of the task; REFUSED if its numbers break."""
    try:
        with checkpoints_in(None):  # no value goes on from another's
            erasure = get_method(method)(task, config)
    except NotFiniteError:
        return REFUSED
    with erasure.apply(task.components):
        found = gap_figures(task.components["model"], split)
    return sum(abs(found[key] - goal[key]) for key in GAPS) / len(GAPS)
