"""The report of one erasure: report.json, report.md and grid.png."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from erase.card import interval, measured_lines
from erase.evaluate.generation import ACCURACIES, Drawn

SCHEMA = 1
GRID_COLUMNS = 8
GRID_ROWS = 2
DERIVED = {"forget_accuracy": "UA", "retain_accuracy": "IRA", "cross_retain_accuracy": "CRA"}


def build_report(
    request: Mapping[str, Any],
    method: str,
    protocol: Mapping[str, Any],
    base: Mapping[str, Any],
    erased: Mapping[str, Any],
    cost: Mapping[str, Any],
) -> dict[str, Any]:
    """The report as JSON; UA, IRA and CRA are derived from the accuracies."""
    names = [name for name in ACCURACIES if name in erased]
    values = {DERIVED[name]: erased[name]["value"] for name in names}
    values["UA"] = round(1 - values["UA"], 4)
    return {
        "schema": SCHEMA,
        "request": dict(request),
        "method": method,
        "protocol": dict(protocol),
        "accuracies": names,
        "metrics": {**erased, "derived": values, "base": dict(base), "oracle": None},
        "cost": dict(cost),
    }


def write_report(report: Mapping[str, Any], base: Drawn, erased: Drawn, folder: Path) -> None:
    """Write report.json, report.md and grid.png into an existing folder."""
    text = json.dumps(report, indent=2, sort_keys=True) + "\n"
    (folder / "report.json").write_text(text)
    (folder / "report.md").write_text(_markdown(report))
    save_grid(base, erased, folder / "grid.png")


def _markdown(report: Mapping[str, Any]) -> str:
    concepts = ", ".join(report["request"]["concepts"])
    cost = report["cost"]
    return (
        f"# {concepts}: suppressed by {report['method']}?\n\n{measured_lines(report)}\n\n"
        f"Cost: {cost['seconds']} s, {cost['artefact_bytes']} bytes, "
        f"{cost['edited_parameters']} edited parameters.\n\n"
        "![Same prompts and seeds, base above, erased below](grid.png)\n"
    )


def save_grid(base: Drawn, erased: Drawn, path: Path) -> None:
    """Same prompts and seeds, base above, erased below: forget prompts first, then retained."""
    rows = []
    for first, end in ((0, base.forget_count), (base.forget_count, len(base.prompts))):
        for start in range(first, min(end, first + GRID_ROWS * GRID_COLUMNS), GRID_COLUMNS):
            part = slice(start, min(end, start + GRID_COLUMNS))
            rows += [_filled_row(base.pictures[part]), _filled_row(erased.pictures[part])]
    grid = make_grid(torch.cat(rows).clamp(0, 1), nrow=GRID_COLUMNS, padding=2, pad_value=1.0)
    array = (grid * 255).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(array).save(path)


def _filled_row(pictures: Tensor) -> Tensor:
    missing = GRID_COLUMNS - len(pictures)
    return torch.cat([pictures, pictures.new_ones(missing, *pictures.shape[1:])])


def summary_table(report: Mapping[str, Any]) -> str:
    """The short table the command line ends with."""
    metrics, cost = report["metrics"], report["cost"]
    lines = [f"{'':24}{'base':>22}{'erased':>22}{'n':>6}"]
    for name in report["accuracies"]:
        before, after = metrics["base"][name], metrics[name]
        title = name.replace("_", " ")
        lines.append(f"{title:24}{interval(before):>22}{interval(after):>22}{after['n']:>6}")
    before, after = metrics["base"]["clip_score"], metrics["clip_score"]
    lines.append(
        f"{'CLIP score, retained':24}{before['value']:>22}{after['value']:>22}{after['n']:>6}"
    )
    lines.append(f"{cost['seconds']:.0f} s, {cost['artefact_bytes'] / 1e6:.1f} MB")
    return "\n".join(lines)
