"""The report of one erasure: report.json, report.md, grid.png, of many concepts a table of all."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from erase.evaluate.layers import CHART
from erase.evaluate.pictures.generation import EvaluationPictures
from erase.evaluate.reports import Report
from erase.evaluate.tables import CONCEPTS, concept_rows, is_long, mask_section, measured_lines
from erase.prompts.names import shortened
from erase.support.files import write_json, write_text
from erase.support.pictures import save_grid

REPORT_FILES = ("report.json", "report.md", "grid.png", CHART, CONCEPTS)
GRID_COLUMNS = 8
GRID_ROWS = 2


def write_report(
    report: Report,
    drawn: Mapping[str, EvaluationPictures],
    folder: Path,
    layers: Mapping[str, Any] | None = None,
) -> None:
    """Write report.json, report.md and grid.png into an existing folder.

    `layers`, a recipe's `mask.layers`, adds where the mask lies: a table and saliency.png. Of more
    concepts than the table shows, concepts.csv has all.
    """
    base = drawn["base"]
    write_json(folder / "report.json", report.to_json())
    write_text(folder / "report.md", _markdown(report, base) + mask_section(layers, folder))
    if is_long(report):
        every = io.StringIO()
        csv.writer(every, lineterminator="\n").writerows(concept_rows(report))
        write_text(folder / CONCEPTS, every.getvalue())
    rows = [
        # What is missing of the last row is white pictures.
        F.pad(one.pictures[row.start : row.stop], (0,) * 7 + (GRID_COLUMNS - len(row),), value=1.0)
        for row in _grid_rows(base)
        for one in drawn.values()
    ]
    save_grid(torch.cat(rows), folder / "grid.png", GRID_COLUMNS)


def _markdown(report: Report, drawn: EvaluationPictures) -> str:
    concepts, cost = shortened(report.request["concepts"]), report.cost
    rows = [
        "- " + "; ".join(prompt.text for prompt in drawn.prompts[row.start : row.stop])
        for row in _grid_rows(drawn)
    ]
    return (
        f"# {concepts}: how far {report.method} suppressed it\n\n{measured_lines(report)}\n\n"
        f"Cost: {cost.seconds} s, {cost.artefact_bytes} bytes, "
        f"{cost.edited_parameters} edited parameters.\n\n"
        f"![Same prompts and seeds, rows in turn {' and '.join(report.metrics)}](grid.png)\n\n"
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
