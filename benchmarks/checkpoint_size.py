"""Bytes of a training's checkpoint at SD1.5's size, written, beside one of whole modules.

Run: `python benchmarks/checkpoint_size.py`. UNet and text encoder come from their published configs
on the meta device. The tensors that training changes by default are made in float32, AdamW takes a
step on them, and a checkpoint of them is written and weighed. The other column is what the weights
of the whole modules would take beside the same optimizer's state.
"""

import tempfile
from pathlib import Path

import torch
from family_memory import models
from torch import nn

from erase.core.names import filter_names
from erase.models.family import FAMILIES
from erase.training.checkpoint import OPTIMIZER, Checkpoints, checkpoints_in
from erase.training.config import TrainingConfig


def row(modules: dict[str, nn.Module]) -> str:
    """One line of the table."""
    shapes = {
        f"{component}.{path}": parameter.shape
        for component, module in modules.items()
        for path, parameter in module.named_parameters()
    }
    chosen = filter_names(shapes, FAMILIES["sd"].reads_text, ())
    weights = {name: nn.Parameter(torch.zeros(shape)) for name, shape in chosen.items()}
    optimizer = torch.optim.AdamW(weights.values(), fused=True)
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    optimizer.step()
    with tempfile.TemporaryDirectory() as folder, checkpoints_in(Path(folder)):
        Checkpoints(TrainingConfig(), "", weights, optimizer).save(1, writes=True)
        files = {path.stem: path.stat().st_size for path in Path(folder).rglob("*.*")}
    whole = sum(4 * shape.numel() for shape in shapes.values()) + files[OPTIMIZER]
    trained = sum(weight.numel() for weight in weights.values())
    cells = f"{trained / 1e6:.0f} M | {sum(files.values()) / 1e9:.2f} GB | {whole / 1e9:.2f} GB"
    return f"| {' and '.join(modules)} | {cells} |"


def main() -> None:
    """Print the table."""
    _, modules = models()["SD1.5"]
    print("| components | trained | checkpoint | of whole modules |\n| --- | --- | --- | --- |")
    print(row({"unet": modules["unet"]}))
    print(row(modules))


if __name__ == "__main__":
    main()
