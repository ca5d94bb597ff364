"""The report of one erasure: report.json, report.md and grid.png."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase.evaluate.layers import CHART, mask_section
from erase.evaluate.pictures.generation import ACCURACIES, EvaluationPictures
from erase.evaluate.tables import columns, measured_lines, metric_rows
from erase.support.files import write_json, write_text
from erase.support.pictures import save_grid

SCHEMA = 1
FILES = ("report.json", "report.md", "grid.png", CHART)
GRID_COLUMNS = 8
GRID_ROWS = 2
DERIVED = {"forget_accuracy": "UA", "retain_accuracy": "IRA", "cross_retain_accuracy": "CRA"}


def build_report(
    request: Mapping[str, Any],
    method: str,
    protocol: Mapping[str, Any],
    judged: Mapping[str, Mapping[str, Any]],
    distances: Mapping[str, Any] | None,
    cost: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as JSON; UA, IRA and CRA are derived from the accuracies.

    `judged` are the metrics of "base", "erased" and, where there is one, "oracle"; `distances` are
    the first two's from the oracle.
    """
    erased = judged["erased"]
    names = [name for name in ACCURACIES if name in erased]
    values = {DERIVED[name]: erased[name]["value"] for name in names}
    values["UA"] = round(1 - values["UA"], 4)
    return {
        "schema": SCHEMA,
        "request": dict(request),
        "method": method,
        "protocol": dict(protocol),
        "accuracies": names,
        "metrics": {
            **erased,
            "derived": values,
            "base": judged["base"],
            "oracle": judged.get("oracle"),
            "distance_to_oracle": distances,
        },
        "cost": dict(cost),
    }


def write_report(
    report: Mapping[str, Any],
    drawn: Mapping[str, EvaluationPictures],
    folder: Path,
    layers: Mapping[str, Any] | None = None,
) -> None:
    """Write report.json, report.md and grid.png into an existing folder.

    `layers`, a recipe's `mask.layers`, adds where the mask lies: a table and saliency.png.
    """
    base = drawn["base"]
    write_json(folder / "report.json", report)
    markdown = _markdown(report, base)
    if layers:
        markdown += mask_section(layers, folder)
    write_text(folder / "report.md", markdown)
    rows = [
        _filled_row(one.pictures[row.start : row.stop])
        for row in _grid_rows(base)
        for one in drawn.values()
    ]
    save_grid(torch.cat(rows), folder / "grid.png", GRID_COLUMNS)


def _markdown(report: Mapping[str, Any], drawn: EvaluationPictures) -> str:
    concepts = ", ".join(report["request"]["concepts"])
    cost = report["cost"]
    rows = [
        "- " + "; ".join(prompt.text for prompt in drawn.prompts[row.start : row.stop])
        for row in _grid_rows(drawn)
    ]
    return (
        f"# {concepts}: how far {report['method']} suppressed it\n\n{measured_lines(report)}\n\n"
        f"Cost: {cost['seconds']} s, {cost['artefact_bytes']} bytes, "
        f"{cost['edited_parameters']} edited parameters.\n\n"
        f"![Same prompts and seeds, rows in turn {' and '.join(columns(report))}](grid.png)\n\n"
        "Prompts of the picture, a line for each such group of rows:\n\n" + "\n".join(rows) + "\n"
    )


def _grid_rows(drawn: EvaluationPictures) -> list[range]:
    """The first rows of forget prompts, then of retained ones."""
    sets = ((0, drawn.forget_count), (drawn.forget_count, len(drawn.prompts)))
    return [
        range(start, min(end, start + GRID_COLUMNS))
        for first, end in sets
        for start in range(first, min(end, first + GRID_ROWS * GRID_COLUMNS), GRID_COLUMNS)
    ]


def _filled_row(pictures: Tensor) -> Tensor:
    missing = GRID_COLUMNS - len(pictures)
    return torch.cat([pictures, pictures.new_ones(missing, *pictures.shape[1:])])


def summary_table(report: Mapping[str, Any]) -> str:
    """The short table the command line ends with."""
    cost = report["cost"]
    rows = [["", *columns(report), "n"], *metric_rows(report)]
    lines = [
        f"{name:30}" + "".join(f"{cell:>22}" for cell in cells) + f"{n:>6}"
        for name, *cells, n in rows
    ]
    return "\n".join([*lines, f"{cost['seconds']:.0f} s, {cost['artefact_bytes'] / 1e6:.1f} MB"])
