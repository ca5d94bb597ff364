"""The table of the EmojiCanvas bench: means over seeds."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from ledger import Ledger

from erase.evaluate.classification import mean_interval

REFERENCES = ("base", "oracle")
HEAD = (
    "", "UA", "IRA", "CRA", "KID", "KID, retain", "MSE", "MSE, retain", "other words", "Pre-ASR",
)  # fmt: skip


def table(
    ledger: Ledger, title: str, rows: Sequence[str], seeds: Sequence[int], attacks: Sequence[str]
) -> str:
    """One line a row; the headline columns with 95 % t-intervals where there are several seeds.

    KID, in thousandths, and MSE are distances to the oracle. What only some seeds were measured
    with is averaged over those.
    """
    head = [*HEAD, *(name.replace("_", " ") for name in attacks), "leak at .5", "seconds", "MB"]
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for row in rows:
        drawn = seeds[:1] if row in REFERENCES else seeds
        cells = _cells([ledger[title, row, seed] for seed in drawn], attacks)
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(runs: Sequence[dict[str, Any]], attacks: Sequence[str]) -> list[str]:
    """The figures of one row's runs, as they are printed."""
    cells = [_interval([100 * run[key] for run in runs]) if key in runs[0] else ""
             for key in ("UA", "IRA", "CRA")]  # fmt: skip
    for distance, scale, digits in (("kernel_distance", 1e3, 1), ("prediction_mse", 1.0, 3)):
        for side in ("forget", "retain"):
            far = [scale * run["oracle"][distance][side]["value"] for run in runs]
            cells.append(_interval(far, digits))
    cells.append(_share([s["value"] for run in runs for s in run["other_words"].values()]))
    attacked = [run for run in runs if "asr" in run]
    cells.append(_share([run["pre_asr"]["value"] for run in attacked]))
    cells += [
        _share([run["asr"][name]["value"] for run in attacked if name in run["asr"]])
        for name in attacks
    ]
    cells.append(_share([run["leak"]["value"] for run in attacked if "leak" in run]))
    cells.append(f"{fmean(run['seconds'] for run in runs):.0f}")
    return [*cells, f"{fmean(run['bytes'] for run in runs) / 1e6:.2f}"]


def _interval(values: Sequence[float], digits: int = 1) -> str:
    """The mean, and the half width of its interval for several values."""
    mean, half = mean_interval(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


def _share(values: Sequence[float]) -> str:
    """The mean share in per cent, nothing where there is none."""
    return f"{100 * fmean(values):.0f}" if values else ""
