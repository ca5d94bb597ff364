"""Which setting of each method of pipelines is searched, and what `fair.py` found to be best."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from ledger import Ledger

from erase.methods import get_method
from erase.runs.calibrate import RATE, with_setting
from erase.tasks.diffusion.task import DiffusionTask

RESULTS = Path(__file__).parent / "results" / "fair.json"
BASE, KEPT = "base", ("IRA", "CRA")
FACTORS = (1.0, 0.3, 3.0, 10.0)
STRENGTHS = (1.0, 0.8, 1.25, 1.6)
# What is searched where no rate is: the setting, its default, and factors. A strength of 0 is 1.25.
SETTINGS: dict[str, tuple[str, float, Sequence[float]]] = {
    "projection": ("strength", 1.25, STRENGTHS),
    "balance": ("strength", 1.0, STRENGTHS),
    "uce": ("preserve_weight", 1.0, FACTORS),
    "rece": ("uce.preserve_weight", 1.0, FACTORS),
    "speed": ("retain_scale", 0.01, FACTORS),
    "oce": ("erase", 3.0, FACTORS),
}


def searched(method: str, task: DiffusionTask) -> tuple[str, float, Sequence[float]]:
    """The setting, what it is by default for this task, and its factors."""
    if method in SETTINGS:
        return SETTINGS[method]
    training = get_method(method).needs(task, get_method(method).config()).training
    if training is None:
        raise SystemExit(f"{method} trains nothing; give it a line in SETTINGS.")
    return RATE, training.learning_rate, FACTORS


def with_factor(method: str, task: DiffusionTask, factor: float) -> Any:
    """The method's config with its setting so many times what it is by default."""
    setting, usual, _ = searched(method, task)
    return with_setting(get_method(method).config(), setting, factor * usual)


def tuned(method: str, task: DiffusionTask) -> Any:
    """The config that the search found; SystemExit if it was not searched to the end."""
    found = scores(Ledger(RESULTS), method)
    if len(found) < len(FACTORS):
        raise SystemExit(f"{method} has not been searched; run benchmarks/fair.py first.")
    return with_factor(method, task, max(found, key=found.__getitem__))


def scores(ledger: Ledger, method: str) -> dict[float, float]:
    """The mean over the pilots of each factor's worst share, the default first; whole ones only."""
    pilots = ledger["protocol",]["pilots"]
    factors = SETTINGS[method][2] if method in SETTINGS else FACTORS
    whole = [f for f in factors if all((method, f, pilot) in ledger for pilot in pilots)]
    return {
        f: fmean(worst(ledger[method, f, pilot], ledger[BASE, pilot]) for pilot in pilots)
        for f in whole
    }


def worst(run: Mapping[str, float], base: Mapping[str, float]) -> float:
    """The least of UA and of what is kept of the base's IRA and CRA; 0 where numbers broke."""
    return min(run["UA"], *(run[key] / base[key] for key in KEPT)) if "UA" in run else 0.0
