"""A supervised classifier as judge: the classes of ImageNet, or its own."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from PIL.Image import Image
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision import models as vision_models
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor

from erase.core.fingerprint import module_fingerprint
from erase.core.process import own_settings
from erase.evaluate.base import judge
from erase.evaluate.pictures.clip import AT_ONCE, steps_of
from erase.support.errors import refused
from erase.support.files import expanded
from erase.support.pictures import as_images
from erase.tasks.classification.fit import logits_of

OTHER = "another class"
HOLDERS = ("model_state_dict", "state_dict", "model")

# A classifier, what makes an input [3, H, W] of a picture, and its classes in order.
Opened = tuple[nn.Module, Callable[[Image], Tensor], Sequence[str]]


class ClassifierJudge:
    """A classifier that names the class it gives most to.

    `name` is `timm/ARCHITECTURE` or `torchvision/ARCHITECTURE` with the library's own weights, one
    of these with `/FILE` for those of a file, or `transformers/` and a folder or hub id. `classes`
    are the file's classes in order, by default ImageNet's; of several names of a class the first
    counts. Pictures go through the library's own transform in 8 bits, as saved ones do; `computes`
    tells it. The model runs on `device`, logits lie on the CPU. Raises ValueError if it cannot be
    opened.
    """

    def __init__(self, name: str, classes: Sequence[str] = (), device: str = "cpu"):
        library, _, source = name.partition("/")
        if classes and (library == "transformers" or "/" not in source):
            raise ValueError(
                f"{name} has classes of its own; give timm/ARCHITECTURE/FILE for others."
            )
        mend = "give timm/NAME, torchvision/NAME, either with /FILE, or transformers/FOLDER-or-id"
        with refused(f"The judge {name} could not be opened", mend):
            model, self._prepare, self._classes = LIBRARIES[library](source, list(classes))
        self.name, self._device = name, torch.device(device)
        self.model = model.to(self._device).eval()

    @property
    def computes(self) -> str:
        """The steps from a picture to the model's input."""
        return steps_of(self._prepare)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the model's weights."""
        return module_fingerprint(self.model)

    @own_settings()
    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Logits [N, classes] of pictures [N, 3, H, W] in 0..1, resized and cropped to its size."""
        ready = (
            torch.stack([self._prepare(one) for one in as_images(part)]).to(self._device)
            for part in pictures.split(AT_ONCE)
        )
        return torch.cat([logits_of(self.model, part).cpu() for part in ready])

    def classify(self, embeddings: Tensor, kind: str, labels: Sequence[str]) -> list[str]:
        """The label each picture's class has of all classes; none of them is "another class"."""
        self.require(labels)
        found = [self._classes[i] for i in embeddings.argmax(1).tolist()]
        return [name if name in labels else OTHER for name in found]

    def require(self, labels: Sequence[str]) -> None:
        """Raise ValueError for a label that is no class."""
        if unknown := [label for label in labels if label not in self._classes]:
            raise ValueError(f"{self.name} knows no class {unknown[0]}; use its own names.")


def _open_timm(source: str, classes: list[str]) -> Opened:
    architecture, _, weights = source.partition("/")
    given = {"num_classes": len(classes)} if classes else {}
    model = timm.create_model(architecture, pretrained=not weights, **given)
    if weights:
        model.load_state_dict(_read(expanded(weights)))
    prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return model, prepare, classes or _imagenet_names(model.num_classes)


def _open_torchvision(source: str, classes: list[str]) -> Opened:
    architecture, _, weights = source.partition("/")
    known = vision_models.get_model_weights(architecture).DEFAULT
    given = {"num_classes": len(classes)} if classes else {}
    model = vision_models.get_model(architecture, weights=None if weights else known, **given)
    if weights:
        model.load_state_dict(_read(expanded(weights)))
    return model, known.transforms(), classes or known.meta["categories"]


@dataclass(frozen=True)
class _Processed:
    """What an image processor of transformers makes of a picture, and how it tells that."""

    processor: BaseImageProcessor

    def __call__(self, picture: Image) -> Tensor:
        return self.processor(picture, return_tensors="pt")["pixel_values"][0]

    def __str__(self) -> str:
        told = {name: value for name, value in self.processor.to_dict().items() if value}
        return " ".join(f"{name} {value}" for name, value in sorted(told.items()))


def _open_transformers(source: str, classes: list[str]) -> Opened:
    source = str(expanded(source))
    model = AutoModelForImageClassification.from_pretrained(source, dtype=torch.float32)
    processor = AutoImageProcessor.from_pretrained(source)
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    return model, _Processed(processor), [name.split(",")[0] for name in names]


LIBRARIES = {
    "timm": _open_timm,
    "torchvision": _open_torchvision,
    "transformers": _open_transformers,
}


@judge(*LIBRARIES)
def open_classifier(
    name: str, classes: Sequence[str], templates: Mapping[str, Sequence[str]], device: str
) -> ClassifierJudge:
    """The classifier of this name, which reads no captions and so needs no templates."""
    return ClassifierJudge(name, classes, device)


def _read(path: Path) -> dict[str, Tensor]:
    """The weights of a safetensors file, or of a checkpoint that holds them under some name."""
    if path.suffix == ".safetensors":
        return load_file(path)
    stored = torch.load(path, map_location="cpu", weights_only=True)
    return next((stored[key] for key in HOLDERS if key in stored), stored)


def _imagenet_names(count: int) -> list[str]:
    """The first name of each ImageNet class, or plain numbers for other counts."""
    if count != 1000:
        return [str(i) for i in range(count)]
    known = ImageNetInfo()
    return [known.index_to_description(i).split(",")[0] for i in range(count)]
