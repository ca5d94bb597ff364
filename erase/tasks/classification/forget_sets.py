"""Which samples to forget: the ones an unlearned model still fits, and those it never fitted."""

import difflib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from erase.core.seeds import seeded
from erase.prompts.names import alike, spelt
from erase.support.config import require_kind
from erase.support.errors import refused
from erase.support.files import LARGEST_TEXT, expanded, read_json, require_file, write_text
from erase.tasks.classification.datasets import Data
from erase.tasks.classification.fit import outputs_of, size_of
from erase.tasks.classification.rows import as_indices, labels_of

Tail = Literal["lowest", "highest"]
Unit = Literal["samples", "balanced", "classes"]
Choose = Callable[[Tensor], list[int]]


def losses_of(model: nn.Module, dataset: Dataset) -> Tensor:
    """The cross-entropy of every sample [n]."""
    outputs = outputs_of(model, dataset)
    return F.cross_entropy(outputs.logits, outputs.labels, reduction="none")


def select(
    losses: Tensor, count: int, tail: Tail = "lowest", classes: Tensor | None = None
) -> list[int]:
    """The `count` items of lowest or highest loss, in ascending order of index.

    Items are samples, or prompts, or concepts, whatever the losses [n] are of. With the items'
    `classes` [n] every class gives its share, the first ones the odd items. Raises ValueError
    unless 0 < count < n.
    """
    require_kind("tail", tail, Tail)
    if not 0 < count < len(losses):
        raise ValueError(f"count is {count} of {len(losses)}; leave something to both sets.")
    classes = torch.zeros(len(losses)) if classes is None else classes
    groups = [(classes == name).nonzero().flatten() for name in classes.unique()]
    chosen: list[int] = []
    for position, group in enumerate(groups):
        share = count // len(groups) + (position < count % len(groups))
        ranked = losses[group].argsort(descending=tail == "highest", stable=True)
        chosen += group[ranked[:share]].tolist()
    return sorted(chosen)


def worst_case(
    losses: Tensor,
    unlearn: Callable[[Sequence[int]], nn.Module],
    dataset: Dataset,
    choose: Choose,
    rounds: int = 3,
) -> list[int]:
    """The forget set that models unlearned of it still fit best.

    It begins with what `choose` makes of the original's `losses` [n], the lowest. Every round
    unlearns the present set, adds all samples' losses under the outcome, and chooses again by the
    sum. `choose` takes the exact optimum of the upper problem for given models, which is linear in
    the 0/1 weights (Fan et al., ECCV 2024, whose rounds see the last model alone); by the sum, one
    model's chance fits do not decide. The last choice is not unlearned itself.
    """
    chosen = choose(losses)
    for _ in range(rounds):
        losses = losses + losses_of(unlearn(chosen), dataset)
        chosen = choose(losses)
    return chosen


def worst_classes(losses: Tensor, classes: Tensor, count: int = 1) -> list[int]:
    """The classes of lowest mean loss, lowest first: the class-wise form."""
    names = classes.unique()
    means = torch.stack([losses[classes == name].mean() for name in names])
    return names[means.argsort(stable=True)[:count]].tolist()


def chooser(classes: Tensor, count: int, tail: Tail = "lowest", unit: Unit = "samples") -> Choose:
    """What takes `count` samples, or samples of every class alike, or whole classes, by loss.

    `classes` are the samples' [n]. Raises ValueError for the highest whole classes, and for all
    or none.
    """
    require_kind("unit", unit, Unit)
    require_kind("tail", tail, Tail)
    if unit == "classes" and tail == "highest":
        raise ValueError("Whole classes are chosen by the lowest loss; leave out tail highest.")
    known, what = (len(classes.unique()), unit) if unit == "classes" else (len(classes), "samples")
    if not 0 < count < known:
        raise ValueError(f"count is {count} of {known} {what}; leave some to both sets.")
    if unit != "classes":
        return lambda losses: select(losses, count, tail, classes if unit == "balanced" else None)

    def members(losses: Tensor) -> list[int]:
        names = torch.tensor(worst_classes(losses, classes, count))
        return torch.isin(classes, names).nonzero().flatten().tolist()

    return members


def write_indices(indices: Sequence[int], path: Path) -> None:
    """Write a forget set as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(list(indices)) + "\n")


def read_indices(path: Path, total: int = sys.maxsize) -> list[int]:
    """Read a forget set of `total` samples, a JSON file or a NumPy array's; ValueError if none."""
    # What can go wrong is of files, of zip files, of JSON nested too deep.
    with refused(f"{path} is no list of indices", "write one with `erase forget-set`"):
        require_file(path, LARGEST_TEXT)
        # Mapped, so that no memory is taken for what a header declares.
        array = path.suffix == ".npy"
        listed = np.load(path, "r", allow_pickle=False) if array else read_json(path)
        return as_indices(listed, total)


def forget_indices(forget: str, data: Data, seed: int) -> list[int]:
    """The indices a text names: "class:3", "class:dog", "random:0.1", or a file's.

    Raises ValueError if they are none, all, or beyond the training set.
    """
    chosen, total = _named(forget, data, seed), size_of(data.train)
    if not chosen or len(chosen) == total:
        raise ValueError(
            f"The forget set {forget} holds {len(chosen)} of {total} samples; leave some to both."
        )
    return chosen


def told(forget: str, data: Data) -> str:
    """The text, with the name of the class that it names by number."""
    kind, _, value = forget.partition(":")
    name = data.names[class_of(value, data)] if kind == "class" and data.names else value
    return forget if name == value else f"{forget} ({name})"


def class_of(asked: str, data: Data) -> int:
    """The class of this name or, where classes are not named by numbers, of this number.

    Raises ValueError if there is none such.
    """
    for same in (spelt, alike, _as_number):
        found = [i for i, name in enumerate(data.names) if same(name) == same(asked)]
        if len(found) == 1:
            return found[0]
    numbered = any(name.strip().isdecimal() for name in data.names)
    if asked.strip().isdecimal() and int(asked) < data.classes and not numbered:
        return int(asked)
    near = difflib.get_close_matches(asked, data.names, 3, 0) if data.names else ()
    known = ", ".join(f"class:{name}" for name in near) or f"class:3, of 0 to {data.classes - 1}"
    raise ValueError(f"The class {asked!r} holds 0 of {size_of(data.train)} samples; write "
                     f"{known}.")  # fmt: skip


def _as_number(name: str) -> int | str:
    return int(name) if name.strip().isdecimal() else name


def _named(forget: str, data: Data, seed: int) -> list[int]:
    kind, _, value = forget.partition(":")
    if kind == "class":
        return (labels_of(data.train) == class_of(value, data)).nonzero().flatten().tolist()
    if kind != "random":
        return read_indices(expanded(forget), size_of(data.train))
    with refused(f"The forget set {forget!r} is no share", "write one such as random:0.1"):
        share = float(value)
        if not 0 < share < 1:
            raise ValueError("it is not between 0 and 1")
    order = torch.randperm(size_of(data.train), generator=seeded(seed))
    return sorted(order[: int(share * size_of(data.train))].tolist())
