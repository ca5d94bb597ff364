"""Where a concept lives: the mask and the saliency of each block, and their bar charts."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from erase.core.delta import Delta

CHART = "saliency.png"
DEPTH = {"unet": 3, "transformer": 3, "text_encoder": 4, "text_encoder_2": 4}


@dataclass
class Block:
    """The tensors whose names share their first parts: weights, those kept, share of saliency."""

    name: str
    weights: int = 0
    kept: int = 0
    saliency_share: float | None = None


def blocks_of(layers: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """A recipe's `mask.layers` by block, such as `unet.up_blocks.0`, in the model's order."""
    blocks: dict[str, Block] = {}
    for name, layer in layers.items():
        key = _block_name(name)
        block = blocks.setdefault(key, Block(key))
        block.weights += layer["of"]
        block.kept += layer["kept"]
        if layer.get("saliency_share") is not None:
            block.saliency_share = (block.saliency_share or 0.0) + layer["saliency_share"]
    return list(blocks.values())


def changes_of(
    deltas: Mapping[str, Delta], weight_of: Callable[[str], Tensor]
) -> dict[str, tuple[float, float]]:
    """By block, the size of the change relative to its weights, and its share of all change.

    Both of sums of squares over the tensors that change: |D| / |W|, and |D|^2 over the total.
    """
    change, weights = defaultdict[str, float](float), defaultdict[str, float](float)
    for name, delta in deltas.items():
        block = _block_name(name)
        change[block] += float(delta.dense().square().sum())
        weights[block] += float(weight_of(name).detach().square().sum())
    total = sum(change.values()) or 1.0
    return {b: ((change[b] / max(weights[b], 1e-30)) ** 0.5, change[b] / total) for b in change}


def save_change_chart(changes: Mapping[str, tuple[float, float]], path: Path) -> None:
    """Draw both figures of `changes_of` by block."""
    relative, share = zip(*changes.values(), strict=True)
    titled = {"change relative to the weights, %": relative, "share of the whole change, %": share}
    _save_bars(list(changes), titled, path)


def save_chart(blocks: list[Block], path: Path) -> None:
    """Draw each block's share of the saliency, where known, and the share of it that is kept."""
    overall = sum(block.kept for block in blocks) / sum(block.weights for block in blocks)
    share = [block.saliency_share or 0.0 for block in blocks]
    kept = [block.kept / block.weights for block in blocks]
    titled = {"share of the saliency, %": share, "may change, % (line: over all blocks)": kept}
    _save_bars([block.name for block in blocks], titled, path, overall)


def _block_name(tensor: str) -> str:
    module = tensor.split(".")[:-1] or [tensor]
    return ".".join(module[: DEPTH.get(module[0], 2)])


def _save_bars(
    names: Sequence[str],
    titled: Mapping[str, Sequence[float]],
    path: Path,
    line: float | None = None,
) -> None:
    """Two bar charts of shares side by side, a bar a name; the line is in the right one."""
    figure = Figure(figsize=(10, 0.28 * len(names) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    places = ((left, "#6a9a58"), (right, "#3b6ea5"))
    for (axes, colour), (title, lengths) in zip(places, titled.items(), strict=True):
        axes.barh(names, [100 * length for length in lengths], color=colour)
        axes.set_xlabel(title)
    if line is not None:
        right.axvline(100 * line, color="#b5482e", linewidth=1)
    left.invert_yaxis()
    figure.savefig(path)
