"""Where a concept lives: the mask and the saliency of each block, as a table and a bar chart."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

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
        *module, _ = name.split(".")
        key = ".".join(module[: DEPTH.get(module[0], 2)])
        block = blocks.setdefault(key, Block(key))
        block.weights += layer["of"]
        block.kept += layer["kept"]
        if "saliency_share" in layer:
            block.saliency_share = (block.saliency_share or 0.0) + layer["saliency_share"]
    return list(blocks.values())


def block_table(blocks: list[Block]) -> str:
    """A Markdown table: how many weights, which share may change, which share of the saliency."""
    rows = ["| block | weights | kept | saliency |", "| --- | --- | --- | --- |"]
    for block in blocks:
        share = "" if block.saliency_share is None else f"{100 * block.saliency_share:.1f} %"
        kept = f"{100 * block.kept / block.weights:.1f} %"
        rows.append(f"| {block.name} | {block.weights} | {kept} | {share} |")
    return "\n".join(rows)


def layer_table(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """The same of every tensor, folded away in Markdown."""
    each = [
        Block(name, layer["of"], layer["kept"], layer.get("saliency_share"))
        for name, layer in layers.items()
    ]
    table = block_table(each).replace("| block |", "| tensor |", 1)
    return f"<details><summary>By tensor</summary>\n\n{table}\n\n</details>"


def mask_section(layers: Mapping[str, Mapping[str, Any]], folder: Path) -> str:
    """Where the mask lies, as Markdown; the chart goes into the folder."""
    blocks = blocks_of(layers)
    save_chart(blocks, folder / CHART)
    tables = f"{block_table(blocks)}\n\n![by block]({CHART})\n\n{layer_table(layers)}"
    return f"\nWhere the mask lies:\n\n{tables}\n"


def save_chart(blocks: list[Block], path: Path) -> None:
    """Draw each block's share of the saliency, where known, and the share of it that is kept."""
    figure = Figure(figsize=(10, 0.28 * len(blocks) + 1.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = [block.name for block in blocks]
    left.barh(names, [100 * (block.saliency_share or 0.0) for block in blocks], color="#6a9a58")
    left.set_xlabel("share of the saliency, %")
    right.barh(names, [100 * block.kept / block.weights for block in blocks], color="#3b6ea5")
    overall = sum(block.kept for block in blocks) / sum(block.weights for block in blocks)
    right.axvline(100 * overall, color="#b5482e", linewidth=1)
    right.set_xlabel("weights that may change, % (line: over all blocks)")
    left.invert_yaxis()
    FigureCanvasAgg(figure).print_png(str(path))
