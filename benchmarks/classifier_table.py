"""The tables of benchmarks/classifiers.py as Markdown.

Run: `python benchmarks/classifier_table.py [--results FILE ...] [--full]`. Prints what the files
hold: a table a forget set, with the forget gap and the average gap; with --full a table a file and
forget set, with all figures, SalUn's mask beside its controls, and what was measured once.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from intervals import mean_interval
from ledger import Ledger, measured_once

from erase.evaluate.classifiers.gaps import GAPS

RESULTS = Path(__file__).parent / "results"
MODELS, KNOWN = ("resnet", "vit"), ("original", "retrained")
COLUMNS = ("probe_accuracy", "relearning_steps", "kl_to_retrained", "agreement")


def table(model: str, ledger: Ledger, name: str, rows: Sequence[str], seeds: Sequence[int]) -> str:
    """One forget set's rows: means over seeds with 95 % t-intervals, gaps before their average."""
    head = ("method", *(f"{key.removesuffix('_accuracy')} gap" for key in GAPS), "average gap",
            "ToW", *COLUMNS, "seconds", "verdict")  # fmt: skip
    lines = [f"### {model}, {name}", ""]
    for known in KNOWN:
        reports = [ledger[name, seed, known]["unlearned"] for seed in seeds]
        cells = (
            f"{key} {interval([r[key] for r in reports])}"
            for key in (*GAPS, "probe_accuracy", "relearning_steps")
        )
        lines.append(f"- {known}: {', '.join(cells)}")
    lines += ["", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    lines += [table_row(ledger, name, row, seeds, len(head)) for row in rows]
    return "\n".join(lines).replace("_", " ") + "\n"


def table_row(ledger: Ledger, name: str, row: str, seeds: Sequence[int], width: int) -> str:
    """One row over the seeds that were not refused."""
    reports = [ledger[name, seed, row] for seed in seeds]
    refused = [report["refused"] for report in reports if "refused" in report]
    reports = [report for report in reports if "refused" not in report]
    counts = Counter(part for report in reports for part in report["verdict"].split("; "))
    said = [
        part if n == len(seeds) else f"{part} ({n} of {len(seeds)})" for part, n in counts.items()
    ]
    said += [f"refused for {len(refused)} of {len(seeds)} seeds: {refused[0]}"] if refused else []
    if not reports:
        return f"| {row} {'| ' * (width - 1)}{said[0]} |"
    cells = [interval([report["gaps"][key] for report in reports]) for key in GAPS]
    cells += [interval([report[key] for report in reports]) for key in ("average_gap", "tow")]
    cells += [interval([report["unlearned"][key] for report in reports]) for key in COLUMNS]
    seconds = fmean(report["seconds"] for report in reports)
    return f"| {row} | {' | '.join(cells)} | {seconds:.1f} | {'; '.join(said)} |"


def interval(values: list[float]) -> str:
    """Mean, and the half width of the t-interval where there are several values."""
    mean, half = mean_interval(values)
    return f"{mean:.2f}" + (f" ± {half:.2f}" if len(values) > 1 else "")


def forget_sets(ledger: Ledger) -> list[str]:
    """The forget sets that were measured."""
    return sorted({key[0] for key in ledger if len(key) == 3} - {"tuned"})


def seeds_and_rows(ledger: Ledger, name: str) -> tuple[list[int], list[str]]:
    """A forget set's seeds, and the rows that all of them have."""
    keys = [key for key in ledger if key[0] == name]
    seeds = sorted({int(key[1]) for key in keys})
    counts = Counter(key[2] for key in keys)
    rows = [row for row, count in counts.items() if count == len(seeds)]
    return seeds, [row for row in rows if row not in (*KNOWN, "indices")]


def brief(ledgers: dict[str, Ledger], name: str) -> str:
    """One forget set: every row's forget gap and average gap, the models side by side."""
    ledger = next(iter(ledgers.values()))
    seeds, _ = seeds_and_rows(ledger, name)
    count = len(ledger[name, seeds[0], "indices"])
    head = ["method"]
    for model in ledgers:
        head += [f"{model}: forget gap", f"{model}: average gap"]
    lines = [f"### {name}", "", f"Forget n {count}; seeds {', '.join(map(str, seeds))}.", ""]
    lines += [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    rows = {row for known in ledgers.values() for row in seeds_and_rows(known, name)[1]}
    for row in ("original", *sorted(rows)):
        cells = [cell for known in ledgers.values() for cell in brief_cells(known, name, row)]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines).replace("_", " ") + "\n"


def brief_cells(ledger: Ledger, name: str, row: str) -> tuple[str, str]:
    """A row's forget gap and average gap over the seeds."""
    seeds, rows = seeds_and_rows(ledger, name)
    if row not in ("original", *rows):
        return "", ""
    reports = [ledger[name, seed, row] for seed in seeds]
    if any("refused" in report for report in reports):
        return "refused", "refused"
    gaps = [gaps_of(ledger, name, seed, row) for seed in seeds]
    averages = [fmean(map(abs, each.values())) for each in gaps]
    return interval([each[GAPS[0]] for each in gaps]), interval(averages)


def gaps_of(ledger: Ledger, name: str, seed: int, row: str) -> dict[str, float]:
    """What a row's model has more than Retrain, in points."""
    ours, retrained = (ledger[name, seed, which]["unlearned"] for which in (row, "retrained"))
    return {key: ours[key] - retrained[key] for key in GAPS}


def beside_controls(ledger: Ledger, name: str) -> str:
    """How much nearer to Retrain SalUn's mask is than each control, paired by seed."""
    seeds, rows = seeds_and_rows(ledger, name)
    lines = []
    for row in rows:
        if row.startswith("salun, ") and row.endswith(" mask"):
            nearer = [
                ledger[name, seed, row]["average_gap"] - ledger[name, seed, "salun"]["average_gap"]
                for seed in seeds
            ]
            lines.append(f"- average gap of {row} minus salun's, by seed: {interval(nearer)}")
    return "\n".join(lines).replace("_", " ") + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the files hold."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [RESULTS / f"classifiers-{model}.json" for model in MODELS]
    parser.add_argument("--results", nargs="+", type=Path, default=usual)
    parser.add_argument("--full", action="store_true")
    args = parser.parse_args(arguments)
    for path in args.results:
        if not path.exists():
            parser.error(f"--results {path}: there is no such file")
    ledgers = {path.stem.removeprefix("classifiers-"): Ledger(path) for path in args.results}
    if not args.full:
        for name in forget_sets(next(iter(ledgers.values()))):
            print(brief(ledgers, name))
        return
    for model, ledger in ledgers.items():
        for name in forget_sets(ledger):
            seeds, rows = seeds_and_rows(ledger, name)
            print(table(model, ledger, name, rows, seeds), beside_controls(ledger, name), sep="\n")
        print(measured_once(ledger))


if __name__ == "__main__":
    main()
