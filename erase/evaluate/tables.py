"""The tables that people read of reports."""

from collections.abc import Mapping, Sequence
from typing import Any


def measured_lines(report: Mapping[str, Any]) -> str:
    """The metrics of a report as a Markdown table with its protocol under it."""
    head = ["metric", *columns(report), "n"]
    rows = [head, ["---"] * len(head), *metric_rows(report)]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    protocol = "; ".join(f"{key} {_plain(value)}" for key, value in report["protocol"].items())
    return "\n".join(lines) + f"\n\nProtocol: {protocol}."


def columns(report: Mapping[str, Any]) -> list[str]:
    """The models that a report compares."""
    return ["base", "erased"] + (["oracle"] if report["metrics"].get("oracle") else [])


def metric_rows(report: Mapping[str, Any]) -> list[list[str]]:
    """Name, a cell a column, and n of every figure.

    Those are pooled accuracies, each concept's, the CLIP score, and distances to the oracle.
    """
    after = report["metrics"]
    judged = [after if name == "erased" else after[name] for name in columns(report)]

    def row(name: str, figures: Sequence[Mapping[str, Any]]) -> list[str]:
        return [name, *map(interval, figures), str(figures[0]["n"])]

    rows = [row(n.replace("_", " "), [one[n] for one in judged]) for n in report["accuracies"]]
    groups = after["forget_accuracy_by_concept"]
    if len(groups) > 1:
        rows += [
            row(f"forget {group}", [one["forget_accuracy_by_concept"][group] for one in judged])
            for group in groups
        ]
    scores = [one["clip_score"] for one in judged]
    rows.append(
        ["CLIP score, retained", *(f"{s['value']:.3f}" for s in scores), str(scores[0]["n"])]
    )
    return rows + _distance_rows(after.get("distance_to_oracle") or {})


def _distance_rows(distances: Mapping[str, Any]) -> list[list[str]]:
    """KID on the judge's features for both sides; the oracle's to itself is nothing to tell."""
    sides = distances["erased"] if distances else ()
    return [
        [
            f"KID to oracle, {side}",
            *(f"{distances[name][side]['value']:.4f}" for name in ("base", "erased")),
            "",
            str(distances["erased"][side]["n"][0]),
        ]
        for side in sides
    ]


def interval(accuracy: Mapping[str, Any]) -> str:
    """`87.5 % [80.1, 92.4]`."""
    low, high = accuracy["interval"]
    return f"{100 * accuracy['value']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{item} {key}" for key, item in value.items())
    return str(value)
