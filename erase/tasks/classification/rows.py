"""The rows of a training set as a classifier learns them, and which of them are meant."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.datasets import VisionDataset

from erase.tasks.classification.fit import size_of

WANTED = "give (input, label) pairs whose labels are whole numbers from 0"


class Rows(Dataset):
    """A map-style data set of inputs and the numbers of their classes.

    Raises ValueError for a row that is no pair and for a label that is no whole number below
    `classes`: at once where the data set lists its labels, else when a row is read.
    """

    def __init__(self, dataset: Dataset, classes: int):
        if classes < 2:
            raise ValueError(f"There is {classes} class; give a data set of two or more.")
        self.dataset, self.classes = dataset, classes
        known = listed_labels(dataset)
        for position, label in enumerate(known or ()):
            self._number(label, position)
        if known is None and len(self):
            _ = self[0]

    def __len__(self) -> int:
        return size_of(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.dataset[index]
        if not isinstance(row, (tuple, list)) or len(row) != 2:
            raise ValueError(f"Sample {index} is a {type(row).__name__} and no pair; {WANTED}.")
        return row[0], self._number(row[1], index)

    def _number(self, label: Any, position: int) -> int:
        plain = label.tolist() if hasattr(label, "tolist") else label
        while isinstance(plain, list) and len(plain) == 1:
            (plain,) = plain
        if not isinstance(plain, int) or isinstance(plain, bool):
            raise ValueError(f"The label of sample {position} is {str(plain)[:40]!r}; {WANTED}.")
        if not 0 <= plain < self.classes:
            raise ValueError(
                f"The label of sample {position} is {plain}, beyond {self.classes} classes; say "
                "how many there are."
            )
        return plain


def labels_of(dataset: Dataset) -> Tensor:
    """The labels of a whole data set [n], read from its own list of them where it has one."""
    known = listed_labels(dataset)
    if known is None:
        known = [dataset[index][1] for index in range(size_of(dataset))]
    return torch.tensor([int(label) for label in known])


def listed_labels(dataset: Dataset) -> Sequence[Any] | None:
    """The labels that a data set lists, so that no input need be read for them."""
    if isinstance(dataset, Rows):
        return listed_labels(dataset.dataset)
    if type(dataset) is Subset:  # others may give labels of their own
        known = listed_labels(dataset.dataset)
        return None if known is None else [known[index] for index in dataset.indices]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return dataset.tensors[1].tolist()
    if isinstance(dataset, VisionDataset) and dataset.target_transform is None:
        targets = getattr(dataset, "targets", getattr(dataset, "labels", None))  # SVHN's name
        return targets.tolist() if isinstance(targets, Tensor) else targets
    return None


def as_indices(given: Any, total: int) -> list[int]:
    """The samples of `total` that are meant, in ascending order, each once.

    given: their indices as numbers, texts of digits, an array or a tensor, or a mask of true and
    false for each. Raises ValueError for anything else, and for samples that are not there.
    """
    listed = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(listed, (str, bytes, Mapping)) or not isinstance(listed, Iterable):
        raise ValueError(f"The forget set is a {type(given).__name__}; give indices or a mask.")
    items = [item.item() if hasattr(item, "item") else item for item in listed]
    if items and all(isinstance(item, bool) for item in items):
        if len(items) != total:
            raise ValueError(f"The mask is of {len(items)} samples of {total}; give one of all.")
        return [index for index, chosen in enumerate(items) if chosen]
    strange = [item for item in items if not _is_index(item)]
    if strange:
        raise ValueError(f"The forget set holds {strange[0]!r}, which is no index; mend it.")
    chosen = sorted({int(item) for item in items})
    if len(items) == total > 2 and chosen[-1] <= 1:
        raise ValueError("The forget set may be a mask or indices; give a mask as true and false.")
    if chosen and not 0 <= chosen[0] <= chosen[-1] < total:
        raise ValueError(f"The forget set names samples beyond the {total} there are; mend it.")
    return chosen


def _is_index(item: Any) -> bool:
    whole = isinstance(item, int) and not isinstance(item, bool)
    return whole or (isinstance(item, str) and item.strip().isdecimal())
