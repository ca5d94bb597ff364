"""Other packages' unlearning on the same model and split, for benchmarks/classifiers.py.

They are no dependencies: `pip install erasus==0.2.0` (MIT), and for supreme-unlearning, which pins
an old PyTorch, `pip install --no-deps supreme-unlearning==0.1.5 && pip install lightning wandb`.
Each runs with its own defaults; a peer that is not installed is left out.
"""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset

BATCH, EPOCHS, SEED = 64, 5, 0
DAMPENING, SELECTION = 1.0, 10.0  # SSD's lambda and alpha, as its paper's classification runs have
Peer = Callable[[nn.Module, Dataset, Dataset], None]


def loader(dataset: Dataset) -> DataLoader:
    """Batches in an order that a fixed seed gives."""
    generator = torch.Generator().manual_seed(SEED)
    return DataLoader(dataset, BATCH, shuffle=True, generator=generator)


def erasus_saliency(
    package: ModuleType, model: nn.Module, forget: Dataset, retain: Dataset
) -> None:
    """Erasus' saliency-guided gradient ascent."""
    package.SaliencyUnlearningStrategy().unlearn(
        model, loader(forget), loader(retain), epochs=EPOCHS
    )


def supreme_ssd(package: ModuleType, model: nn.Module, forget: Dataset, retain: Dataset) -> None:
    """Supreme's selective synaptic dampening; its batches carry indices in the middle."""
    from lightning.fabric import Fabric  # which the package has imported itself

    forgotten, everything = (
        [(inputs, None, labels) for inputs, labels in loader(part)]
        for part in (forget, ConcatDataset([forget, retain]))
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    package.ssd(fabric, 0, False, model, forgotten, everything, DAMPENING, SELECTION)


KNOWN: dict[str, tuple[str, Callable[..., None]]] = {
    "erasus 0.2.0, saliency_unlearning": (
        "erasus.strategies.gradient_methods.saliency_unlearning",
        erasus_saliency,
    ),
    "supreme-unlearning 0.1.5, ssd": ("supreme.methods.unlearning_methods.ssd", supreme_ssd),
}
PEERS: dict[str, Peer] = {
    name: partial(run, import_module(path))
    for name, (path, run) in KNOWN.items()
    if find_spec(path.split(".")[0])
}
