"""Classification data sets by name, from a local root; nothing is downloaded unasked."""

import gzip
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset
from torchvision import datasets as vision
from torchvision import models as vision_models
from torchvision.transforms import v2

from erase.support.errors import refused
from erase.support.files import expanded, in_order, read_text
from erase.support.pictures import is_picture, open_picture
from erase.tasks.classification.fit import head_of

TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
DIGITS_SEED, DIGITS_TEST = 0, 0.25
DEBIAN_FASHION = Path("/usr/share/datasets/fashion-mnist")  # of dataset-fashion-mnist


@dataclass(frozen=True)
class Data:
    """A training and a test set of (picture in 0..1, label), and how many classes there are.

    names: of the classes in the order of their labels, where they have any.
    """

    train: Dataset
    test: Dataset
    classes: int
    names: Sequence[str] = ()


def load_data(name: str, root: str | Path = "data", download: bool = False, side: int = 64) -> Data:
    """The data set called `name`: digits, fashion_mnist, cifar10, cifar100, svhn, tiny_imagenet.

    Fashion-MNIST that is not under `root` is read where Debian's package puts it. Tiny ImageNet is
    read as it is handed out, from `root`/tiny-imagenet-200. "folder" reads
    `root`/train and `root`/val (or `root`/test), one folder a class in the order one counts in and
    none that is hidden, resized and cropped to `side` pixels. `download` lets torchvision fetch
    what is missing. Raises ValueError for an unknown name and for files that are not there.
    """
    if name not in LOADERS:
        raise ValueError(f"There is no data set {name!r}; choose one of {', '.join(LOADERS)}.")
    root, mend = expanded(root), "name another root, or download"
    with refused(f"The files of {name} are not under {root}", mend, RuntimeError, OSError):
        return LOADERS[name](root, download, side)


def _digits(root: Path, download: bool, side: int) -> Data:
    bunch = load_digits()
    pictures = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 16
    labels = torch.tensor(bunch.target)
    train, test = train_test_split(
        range(len(labels)), test_size=DIGITS_TEST, random_state=DIGITS_SEED, stratify=bunch.target
    )
    train, test = (
        TensorDataset(pictures[rows], labels[rows]) for rows in (sorted(train), sorted(test))
    )
    return Data(train, test, 10)


def _torchvision(
    kind: Callable[..., Dataset],
    classes: int,
    option: str = "train",
    parts: Sequence[Any] = (True, False),
) -> Callable[[Path, bool, int], Data]:
    """What opens both `parts` of a kind of data set, which its `option` tells apart."""

    def load(root: Path, download: bool, side: int) -> Data:
        train, test = (
            kind(root, transform=TO_TENSOR, download=download, **{option: part}) for part in parts
        )
        return Data(train, test, classes, getattr(train, "classes", ()))

    return load


def _fashion_mnist(root: Path, download: bool, side: int) -> Data:
    kind = vision.FashionMNIST
    if download or (root / kind.__name__).is_dir() or not DEBIAN_FASHION.is_dir():
        return _torchvision(kind, 10)(root, download, side)
    return Data(_of_idx_files("train"), _of_idx_files("t10k"), 10, kind.classes)


def _of_idx_files(part: str) -> TensorDataset:
    """One part of Debian's Fashion-MNIST."""

    def numbers(kind: str, header: int) -> Tensor:
        file = gzip.decompress((DEBIAN_FASHION / f"{part}-{kind}-ubyte.gz").read_bytes())
        return torch.tensor(np.frombuffer(file, np.uint8, offset=header))  # in bytes

    images, labels = numbers("images-idx3", 16), numbers("labels-idx1", 8).long()
    pictures = images.reshape(len(labels), 1, 28, 28)
    return TensorDataset(v2.functional.to_dtype(pictures, torch.float32, scale=True), labels)


def _folder(root: Path, download: bool, side: int) -> Data:
    held_out = root / ("val" if (root / "val").is_dir() else "test")
    ready = v2.Compose([v2.Resize(side), v2.CenterCrop(side), TO_TENSOR])
    train, test = (ClassFolders(part, ready) for part in (root / "train", held_out))
    if differ := set(train.classes) ^ set(test.classes):
        raise ValueError(f"Of {root / 'train'} and {held_out} only one has the class folder "
                         f"{in_order(differ)[0]}; give both the same.")  # fmt: skip
    return Data(train, test, len(train.classes), train.classes)


class ClassFolders(vision.ImageFolder):
    """torchvision's, but for hidden files, the order of numbers, and how pictures are read."""

    def __init__(self, folder: Path, ready: v2.Transform):
        super().__init__(folder, ready, loader=open_picture, is_valid_file=is_picture)

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        """The folders that are not hidden, and their numbers; ValueError for fewer than two."""
        folders = (path.name for path in Path(directory).iterdir() if path.is_dir())
        names = in_order(name for name in folders if not name.startswith("."))
        if len(names) < 2:
            raise ValueError(f"{directory} holds {len(names)} class folders; give two or more.")
        return names, {name: number for number, name in enumerate(names)}


def _tiny_imagenet(root: Path, download: bool, side: int) -> Data:
    """Its validation pictures lie in one folder; their classes stand in a file beside them."""
    train_folder, folder = (root / "tiny-imagenet-200" / part for part in ("train", "val"))
    train = ClassFolders(train_folder, TO_TENSOR)
    known, pictures = folder / "val_annotations.txt", folder / "images"
    with refused(f"{known} cannot be read", "mend it"):
        rows = [line.split("\t")[:2] for line in read_text(known).split("\n") if line]
        if odd := [row for row in rows if len(row) < 2 or not (pictures / row[0]).is_file()]:
            raise ValueError(f"{odd[0]} names no picture that is there, or no class")
    if unknown := {synset for _, synset in rows} - train.class_to_idx.keys():
        raise ValueError(f"{folder} has the class {unknown.pop()}, which train lacks; add it.")
    test = copy(train)
    test.root, test.targets = str(folder), [train.class_to_idx[synset] for _, synset in rows]
    paths = (str(pictures / name) for name, _ in rows)
    test.samples = test.imgs = list(zip(paths, test.targets, strict=True))
    return Data(train, test, 200, train.classes)


LOADERS: dict[str, Callable[[Path, bool, int], Data]] = {
    "digits": _digits,
    "fashion_mnist": _fashion_mnist,
    "cifar10": _torchvision(vision.CIFAR10, 10),
    "cifar100": _torchvision(vision.CIFAR100, 100),
    "svhn": _torchvision(vision.SVHN, 10, "split", ("train", "test")),
    "tiny_imagenet": _tiny_imagenet,
    "folder": _folder,
}


def build_classifier(name: str, data: Data) -> nn.Module:
    """A torchvision classifier by name, untrained, for the data's classes and channels.

    For pictures of 32 pixels and less ResNets lose the strides of their first layers. Raises
    ValueError for an unknown name, for a model without a linear layer at its end, and for one that
    cannot read pictures of this size.
    """
    if name not in vision_models.list_models(vision_models):  # not those that detect
        raise ValueError(
            f"torchvision has no model {name!r} that classifies pictures; see "
            "torchvision.models.list_models(torchvision.models)."
        )
    model = vision_models.get_model(name, num_classes=data.classes)
    channels, *_, side = data.train[0][0].shape
    if isinstance(model, vision_models.ResNet) and side <= 32:
        model.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        model.maxpool = nn.Identity()
    _read_channels(model, channels)
    head_of(model)  # which is measured
    what = f"A {name} cannot read pictures of {side} pixels"
    with refused(what, "name another model", RuntimeError, AssertionError):
        model.eval()(data.train[0][0][None])
    return model


def _read_channels(model: nn.Module, channels: int) -> None:
    """Give the first convolution another number of input channels."""
    path, first = next(p for p in model.named_modules() if isinstance(p[1], nn.Conv2d))
    if first.in_channels == channels:
        return
    wanted = nn.Conv2d(
        channels, first.out_channels, first.kernel_size, first.stride, first.padding,
        bias=first.bias is not None,
    )  # fmt: skip
    model.set_submodule(path, wanted)
