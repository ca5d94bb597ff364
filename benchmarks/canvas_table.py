"""The table of the EmojiCanvas bench: means over seeds.

Run: `python benchmarks/canvas_table.py [--results FILE] [--full]`. Prints what the file holds,
nearest to the oracle first; with --full all columns, each table's protocol, and what was measured
once.
"""

import argparse
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from intervals import mean_interval
from ledger import ONCE, Ledger, measured_once

RESULTS = Path(__file__).parent / "results" / "emoji_canvas.json"
REFERENCES = ("base", "oracle")
HEAD = (
    "", "UA", "IRA", "CRA", "KID", "KID, retain", "MSE", "MSE, retain", "other words", "Pre-ASR",
)  # fmt: skip
BRIEF = ("", "UA", "IRA", "CRA", "KID", "MSE", "other words", "concept inversion", "relearning",
         "leak at .5", "seconds", "MB")  # fmt: skip


def table(
    ledger: Ledger, title: str, rows: Sequence[str], seeds: Sequence[int], attacks: Sequence[str],
    columns: Collection[str] = (),
) -> str:  # fmt: skip
    """One line a row; the headline columns with 95 % t-intervals where there are several seeds.

    KID, in thousandths, and MSE are distances to the oracle. What only some seeds were measured
    with is averaged over those. Without a choice of columns, all are there.
    """
    head = [*HEAD, *(name.replace("_", " ") for name in attacks), "leak at .5", "seconds", "MB"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        drawn = seeds[:1] if row in REFERENCES else seeds
        lines.append([row, *_cells([ledger[title, row, seed] for seed in drawn], attacks)])
    shown = [i for i, name in enumerate(head) if not columns or name in columns]
    lines = [f"| {' | '.join(line[i] for i in shown)} |" for line in lines]
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


def whole_table(ledger: Ledger, title: str, columns: Collection[str]) -> str:
    """The table of every row that all seeds have, nearest to the oracle first."""
    runs: dict[str, dict[int, Any]] = {}
    for key in ledger:
        if key[0] == title and len(key) == 3:
            runs.setdefault(key[1], {})[int(key[2])] = ledger[key]
    seeds = sorted(set().union(*runs.values()))
    attacks = {name for row in runs.values() for run in row.values() for name in run.get("asr", ())}
    whole = [row for row in runs if row in REFERENCES or len(runs[row]) == len(seeds)]

    def kid(row: str) -> float:
        far = [run["oracle"]["kernel_distance"]["forget"]["value"] for run in runs[row].values()]
        return fmean(far)

    return table(ledger, title, sorted(whole, key=kid), seeds, sorted(attacks), columns)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the file holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args(arguments)
    if not args.results.exists():
        parser.error(f"--results {args.results}: there is no such file")
    ledger = Ledger(args.results)
    for title in sorted({key[0] for key in ledger} - {ONCE}):
        print(f"{title}:", "", whole_table(ledger, title, () if args.full else BRIEF), sep="\n")
        if args.full:
            print(f"Protocol: {ledger[title, 'protocol']}\n")
    if args.full:
        print(measured_once(ledger))


if __name__ == "__main__":
    main()
