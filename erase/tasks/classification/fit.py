"""Training a classifier from scratch: the original, the retrained oracle, attack shadows."""

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, OneCycleLR
from torch.utils.data import DataLoader, Dataset

from erase.core.precision import widened
from erase.core.process import own_settings
from erase.core.seeds import folded, seeded
from erase.support.config import Config, Positive
from erase.support.progress import Bar

RISE = 0.3  # of all steps
BATCH = 256  # samples that are looked at together


@dataclass(frozen=True)
class FitConfig(Config):
    """Stochastic gradient descent with a cosine schedule.

    Args:
        epochs: passes through the data.
        learning_rate: at its highest, after a rise over the first three tenths.
        momentum: Nesterov's.
        weight_decay: on all parameters.
        batch_size: samples of a step.
    """

    epochs: Positive[int] = 10
    learning_rate: Positive[float] = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: Positive[int] = 128


def size_of(dataset: Dataset) -> int:
    """How many samples a map-style data set holds."""
    return len(dataset)  # type: ignore[arg-type]  # torch's Dataset leaves it to its subclasses


@own_settings()
def fit(model: nn.Module, dataset: Dataset, config: FitConfig, seed: int = 0) -> nn.Module:
    """Train `model` in place on (input, label) pairs; order and dropout follow from the seed.

    An epoch leaves out the samples that make no whole batch: a last batch of a few would upset the
    running statistics of norms. The model comes back in evaluation mode.
    """
    loader = DataLoader(
        dataset, config.batch_size, shuffle=True, drop_last=size_of(dataset) > config.batch_size,
        generator=seeded(seed),
    )  # fmt: skip
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, config.momentum,
        weight_decay=config.weight_decay, nesterov=config.momentum > 0,
    )  # fmt: skip
    steps = config.epochs * len(loader)
    schedule = one_cycle(optimizer, config.learning_rate, steps)
    model.train()
    with chance_of(seed, on_devices=True):
        for _ in Bar(range(config.epochs), desc="training", unit="epoch", leave=False):
            for inputs, labels in loader:
                logits = logits_of(model, inputs)
                loss = F.cross_entropy(logits, labels.to(logits.device))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    return model.eval()


def one_cycle(optimizer: Optimizer, highest: float, steps: int) -> LRScheduler:
    """The schedule: a rise over the first of all steps, then a cosine down to almost nothing."""
    return OneCycleLR(optimizer, highest, max(steps, 2), pct_start=RISE, cycle_momentum=False)


@contextmanager
def chance_of(seed: int, on_devices: bool = False) -> Iterator[None]:
    """While in force, what is drawn on the CPU, as augmentation is, follows from the seed.

    So does, with `on_devices`, what is drawn on others, as dropout is. Afterwards every generator
    of the process goes on as if nothing had been drawn.
    """
    others = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(None if on_devices else []):
        (torch.manual_seed if on_devices else torch.default_generator.manual_seed)(folded(seed))
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(others[0])
            np.random.set_state(others[1])


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The logits [B, classes], which the output may hold as `logits`, in at least float32.

    Inputs are taken to where and as the model computes.
    """
    parameter = next(model.parameters())
    output = model(inputs.to(parameter.device, parameter.dtype))
    return widened(getattr(output, "logits", output))


def head_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """The last linear layer, which gives the logits, and its path; ValueError if there is none."""
    linear = [pair for pair in model.named_modules() if isinstance(pair[1], nn.Linear)]
    if not linear:
        raise ValueError("The model has no linear layer to end in; give one that has.")
    return linear[-1]


def untrained_copy(model: nn.Module) -> nn.Module:
    """A copy with every layer as before any training; ValueError for one that cannot be reset."""
    fresh = copy.deepcopy(model)
    for path, module in fresh.named_modules():
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if reset:
            reset()
        elif next(module.parameters(recurse=False), None) is not None:
            raise ValueError(
                f"The layer {path or 'model'} cannot be reset, so an untrained model would keep "
                "what it learnt; pass build=, which makes one."
            )
    return fresh


@dataclass(frozen=True)
class Outputs:
    """What a model says of some samples: logits [n, C], labels [n], the head's inputs [n, d]."""

    logits: Tensor
    labels: Tensor
    features: Tensor

    def accuracy(self, rows: Tensor | None = None) -> float:
        """Share of right answers, in per cent, of all samples or of the chosen ones."""
        right = self.logits.argmax(1) == self.labels
        return 100 * float((right if rows is None else right[rows]).double().mean())


@torch.no_grad()
def outputs_of(model: nn.Module, dataset: Dataset) -> Outputs:
    """Run the model, in evaluation mode, over a whole data set."""
    model.eval()
    features: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features.append(widened(inputs[0].flatten(1).cpu()))

    with head_of(model)[1].register_forward_pre_hook(keep):
        loader = DataLoader(dataset, BATCH)
        parts = [(logits_of(model, inputs).cpu(), labels) for inputs, labels in loader]
    logits, labels = (torch.cat(part) for part in zip(*parts, strict=True))
    return Outputs(logits, labels, torch.cat(features))
