"""A supervised classifier as judge: the classes of ImageNet, or its own."""

from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from timm.data import ImageNetInfo
from torch import Tensor
from torchvision.transforms import v2

from erase.checks import reason_of
from erase.core.fingerprint import module_fingerprint
from erase.evaluate.clip import CHUNK, ClipJudge

PREFIX = "timm/"
OTHER = "another class"
HOLDERS = ("model_state_dict", "state_dict", "model")


class ClassifierJudge:
    """A timm classifier that names the class it gives most to.

    `name` is `timm/ARCHITECTURE` with timm's own weights, or `timm/ARCHITECTURE/FILE` with those of
    a file. `classes` are the file's classes in order; by default ImageNet's first names. Raises
    ValueError if it cannot be opened.
    """

    def __init__(self, name: str, classes: Sequence[str] = ()):
        self.name, (architecture, _, weights) = name, name.removeprefix(PREFIX).partition("/")
        if classes and not weights:
            raise ValueError(
                f"{name} has ImageNet's classes; give timm/ARCHITECTURE/FILE for others."
            )
        given = {"num_classes": len(classes)} if classes else {}
        try:
            self.model = timm.create_model(architecture, pretrained=not weights, **given).eval()
            if weights:
                self.model.load_state_dict(_read(Path(weights)))
        except Exception as error:
            raise ValueError(
                f"The judge {name} could not be opened ({reason_of(error)}); give "
                "timm/ARCHITECTURE or timm/ARCHITECTURE/FILE, e.g. timm/resnet50.a1_in1k."
            ) from error
        self._config = timm.data.resolve_model_data_config(self.model)
        self._classes = list(classes) or _imagenet_names(self.model.num_classes)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the model's weights."""
        return module_fingerprint(self.model)

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Logits [N, classes] of pictures [N, 3, H, W] in 0..1, resized and cropped to its size."""
        size, mean, std = (self._config[key] for key in ("input_size", "mean", "std"))
        resized = v2.functional.resize(pictures, list(size[1:2]), v2.InterpolationMode.BICUBIC)
        cropped = v2.functional.center_crop(resized, list(size[1:])).clamp(0, 1)
        ready = v2.functional.normalize(cropped, list(mean), list(std))
        return torch.cat([self.model(part) for part in ready.split(CHUNK)])

    def classify(self, embeddings: Tensor, kind: str, labels: Sequence[str]) -> list[str]:
        """The label each picture's class has of all classes; none of them is "another class"."""
        self.require(labels)
        found = [self._classes[i] for i in embeddings.argmax(1).tolist()]
        return [name if name in labels else OTHER for name in found]

    def require(self, labels: Sequence[str]) -> None:
        """Raise ValueError for a label that is no class."""
        unknown = [label for label in labels if label not in self._classes]
        if unknown:
            raise ValueError(f"{self.name} knows no class {unknown[0]}; use its own names.")


Judge = ClipJudge | ClassifierJudge


def open_judge(name: str, classes: Sequence[str] = ()) -> Judge:
    """The timm classifier or open_clip model of this name."""
    return ClassifierJudge(name, classes) if name.startswith(PREFIX) else ClipJudge(name)


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
