"""The tables of benchmarks/classifiers.py as Markdown."""

from collections import Counter
from collections.abc import Sequence
from statistics import fmean

from ledger import Ledger

from erase.evaluate.classification import GAPS, mean_interval

COLUMNS = ("probe_accuracy", "relearning_steps", "kl_to_retrained", "agreement")


def table(model: str, ledger: Ledger, name: str, rows: Sequence[str], seeds: Sequence[int]) -> str:
    """One forget set's rows: means over seeds with 95 % t-intervals, gaps before their average."""
    head = ("method", *(f"{key.removesuffix('_accuracy')} gap" for key in GAPS), "average gap",
            "ToW", *COLUMNS, "seconds", "verdict")  # fmt: skip
    lines = [f"### {model}, {name}", ""]
    for known in ("original", "retrained"):
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
