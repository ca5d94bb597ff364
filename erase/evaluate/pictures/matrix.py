"""UA, IRA and CRA over every object in every style, and their heat-maps."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from erase.evaluate.base import Judge
from erase.prompts.catalogue import Catalogue, Concept, Sampling
from erase.prompts.seeds import MATRIX_SEED
from erase.tasks.diffusion.sampling import draw


@dataclass(frozen=True)
class Matrix:
    """Whether each cell's picture shows its object and its style.

    object_seen, style_seen: 1 or 0 [objects, styles], nan where no picture was drawn.
    """

    objects: Sequence[str]
    styles: Sequence[str]
    object_seen: Tensor
    style_seen: Tensor


def canvas_matrix(
    pipeline: DiffusionPipeline,
    catalogue: Catalogue,
    judge: Judge,
    sampling: Sampling,
    every: int = 1,
    whole: Sequence[Concept] = (),
) -> Matrix:
    """Draw one picture a cell, from seeds that are alike for every model, and judge it.

    With `every` above 1 it is one cell in so many, along diagonals, so that all objects and styles
    have their share, and all cells of the concepts that are `whole`.
    """
    objects, styles = list(catalogue.objects), list(catalogue.styles)
    rows, columns = _chosen(objects, styles, whole)
    own = rows[:, None] | columns
    diagonal = torch.arange(len(objects))[:, None] + torch.arange(len(styles))
    drawn = (own | (diagonal % every == 0)).nonzero().tolist()
    prompts = [catalogue.prompt(objects[i], styles[j]) for i, j in drawn]
    seeds = [MATRIX_SEED + i * len(styles) + j for i, j in drawn]
    pictures = draw(pipeline, prompts, seeds, sampling, "pt", "objects in styles")
    embeddings = judge.embed(pictures.float())
    rows, columns = torch.tensor(drawn).T
    seen = []
    for kind, labels, right in (("object", objects, rows), ("style", styles, columns)):
        found = judge.classify(embeddings, kind, labels)
        hits = [name == labels[i] for name, i in zip(found, right.tolist(), strict=True)]
        seen.append(torch.full(own.shape, torch.nan))
        seen[-1][rows, columns] = torch.tensor(hits).float()
    return Matrix(objects, styles, *seen)


def _chosen(
    objects: Sequence[str], styles: Sequence[str], concepts: Sequence[Concept]
) -> tuple[Tensor, Tensor]:
    """Which objects, and which styles, are among these concepts: booleans."""
    rows = torch.tensor([Concept(name, "object") in concepts for name in objects])
    return rows, torch.tensor([Concept(name, "style") in concepts for name in styles])


def ua_ira_cra(matrix: Matrix, forgotten: Sequence[Concept]) -> dict[str, float]:
    """Unlearning, in-domain retain and cross-domain retain accuracy, as shares.

    UA: 1 - accuracy of the forgotten concepts in their own cells. Over the cells without any
    forgotten concept: IRA is the accuracy of the forgotten concepts' kind, CRA that of the other
    kind; where both kinds are forgotten, IRA is over both and CRA is missing, as are figures of
    which there is no cell. Source: UnlearnCanvas (Zhang et al., NeurIPS 2024).
    """
    rows, columns = _chosen(matrix.objects, matrix.styles, forgotten)
    kept = ~(rows[:, None] | columns)
    own = torch.cat([matrix.object_seen[rows].flatten(), matrix.style_seen[:, columns].flatten()])
    kinds = {concept.kind for concept in forgotten}
    hits: dict[str, list[Tensor]] = {"UA": [1 - own.double()], "IRA": [], "CRA": []}
    for kind, seen in (("object", matrix.object_seen), ("style", matrix.style_seen)):
        hits["IRA" if kind in kinds else "CRA"].append(seen[kept].double())
    shares = {name: float(torch.cat(parts).nanmean()) for name, parts in hits.items() if parts}
    return {name: share for name, share in shares.items() if not isnan(share)}


def save_heat_maps(matrices: dict[str, Matrix], path: Path) -> None:
    """For each named matrix a map of objects seen and one of styles seen."""
    first = next(iter(matrices.values()))
    figure = Figure(
        figsize=(2 + 0.19 * len(first.objects), 1.6 * len(matrices) + 1.6), layout="constrained"
    )
    axes = figure.subplots(len(matrices) * 2, 1, sharex=True, squeeze=False)[:, 0]
    for i, (name, matrix) in enumerate(matrices.items()):
        _map(axes[2 * i], matrix, matrix.object_seen, f"{name}: the object is seen")
        _map(axes[2 * i + 1], matrix, matrix.style_seen, f"{name}: the style is seen")
    axes[-1].set_xticks(range(len(first.objects)), first.objects, rotation=90, fontsize=6)
    figure.savefig(path)


def _map(axes: Axes, matrix: Matrix, seen: Tensor, title: str) -> None:
    axes.set_facecolor("lightgrey")
    axes.imshow(seen.T.double().numpy(), cmap="RdYlGn", vmin=0, vmax=1, aspect="auto")
    axes.set_title(title, fontsize=8, loc="left")
    axes.set_yticks(range(len(matrix.styles)), matrix.styles, fontsize=6)
