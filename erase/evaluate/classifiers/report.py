"""The report of one unlearned classifier: report.json, report.md and its pictures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from erase.evaluate.layers import CHART
from erase.evaluate.reports import GAPS, GapReport
from erase.evaluate.tables import gap_table, mask_section
from erase.support.files import write_json, write_text
from erase.tasks.classification.fit import logits_of

REPORT_FILES = ("report.json", "report.md", "gaps.png", "boundary.png", "attribution.png", CHART)
GRID, MARGIN = 60, 0.5
ATTRIBUTION_STEPS = 32


def write_classification_report(
    report: GapReport,
    models: Mapping[str, nn.Module],
    examples: tuple[Tensor, Tensor],
    folder: Path,
    layers: Mapping[str, Any] | None = None,
) -> None:
    """Write the report and its pictures into an existing folder.

    `models` are the original, the retrained and the unlearned one; `examples` a few inputs
    [n, C, H, W] with their labels [n], forgotten ones first. `layers`, a recipe's `mask.layers`,
    adds where the mask lies.
    """
    write_json(folder / "report.json", report.to_json())
    save_gap_chart(report, folder / "gaps.png")
    save_boundaries(models, examples[0], folder / "boundary.png")
    save_attributions(models, *examples, folder / "attribution.png")
    text = f"# {report.request}: {report.method}\n\n{gap_table(report)}\n\n"
    text += "![gaps to Retrain](gaps.png)\n\n"
    text += "![answers on the plane through a forgotten and two other samples](boundary.png)\n\n"
    if (folder / "attribution.png").exists():
        text += "![what the true class' logit rests on](attribution.png)\n"
    write_text(folder / "report.md", text + mask_section(layers, folder))


def save_gap_chart(report: GapReport, path: Path) -> None:
    """Draw each gap to Retrain as a bar, the original's beside the unlearned model's."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes, places = figure.add_subplot(), np.arange(len(GAPS))
    for shift, name in ((-0.2, "original"), (0.2, "unlearned")):
        found = getattr(report, name)
        gaps = [found[key] - report.retrained[key] for key in GAPS]
        axes.bar(places + shift, gaps, 0.4, label=name)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(places, [key.replace("_", "\n") for key in GAPS])
    axes.set_ylabel("points from Retrain")
    axes.legend()
    figure.savefig(path)


@torch.no_grad()
def save_boundaries(models: Mapping[str, nn.Module], inputs: Tensor, path: Path) -> None:
    """Draw each model's answers on the plane through the first three inputs."""
    origin, right, up = inputs[:3]
    ticks = torch.linspace(-MARGIN, 1 + MARGIN, GRID)
    rows, columns = torch.meshgrid(ticks, ticks, indexing="ij")
    weights = [axis.reshape(-1, *[1] * origin.dim()) for axis in (columns, rows)]
    points = origin + weights[0] * (right - origin) + weights[1] * (up - origin)

    def draw(axes: Axes, model: nn.Module) -> None:
        parts = [logits_of(model, part) for part in points.split(256)]
        answers = torch.cat(parts).argmax(1)
        edges = (-MARGIN, 1 + MARGIN) * 2
        grid = answers.view(GRID, GRID).cpu()
        axes.imshow(grid.numpy(), cmap="tab20", vmin=0, vmax=19, origin="lower", extent=edges)
        axes.plot([0], [0], "kx", label="forgotten")
        axes.plot([1, 0], [0, 1], "k.", label="retained")

    _panels(models, draw, path)


def save_attributions(
    models: Mapping[str, nn.Module], inputs: Tensor, labels: Tensor, path: Path
) -> None:
    """Draw the integrated gradients of the true class' logit for the first input.

    Needs captum (the `explain` extra); without it nothing is drawn.
    """
    try:
        from captum.attr import IntegratedGradients
    except ImportError:
        return

    def draw(axes: Axes, model: nn.Module) -> None:
        gradients = IntegratedGradients(lambda batch: logits_of(model, batch))
        target = int(labels[0])
        found = gradients.attribute(inputs[:1], target=target, n_steps=ATTRIBUTION_STEPS).detach()
        heat = found[0].sum(0).cpu().numpy()
        bound = float(abs(heat).max()) or 1.0
        axes.imshow(heat, cmap="seismic", vmin=-bound, vmax=bound)

    _panels(models, draw, path)


def _panels(
    models: Mapping[str, nn.Module], draw: Callable[[Axes, nn.Module], None], path: Path
) -> None:
    figure = Figure(figsize=(3 * len(models), 3.2), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, len(models), squeeze=False)[0]
    for axes, (name, model) in zip(panels, models.items(), strict=True):
        draw(axes, model)
        axes.set_title(name)
        axes.set_xticks([])
        axes.set_yticks([])
    figure.savefig(path)
