"""Zero-shot labels and CLIP scores through any open_clip model."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torchvision.transforms import Compose

from erase.core.fingerprint import module_fingerprint
from erase.core.process import own_settings
from erase.evaluate.base import judge
from erase.support.errors import refused
from erase.support.pictures import as_images

AT_ONCE = 64  # pictures or captions that a judge sees together
SCORE_SCALE = 2.5
SCHEMES = ("local-dir", "hf-hub")  # open_clip's own; before anything else stands an architecture
PLAIN_TEMPLATES = ("{}", "a {}", "a picture of a {}")


class ClipJudge:
    """An open_clip model that names what it sees.

    `name` is `local-dir:FOLDER`, `hf-hub:REPO`, or an architecture and its weights, as in
    `ViT-B-32/openai` or `ARCHITECTURE/PATH`. It has the activation that its weights were trained
    with, and reads pictures through open_clip's own transform; `computes` tells both. `templates`
    gives, by kind of label, the captions that speak for a label, each with one `{}`. The model runs
    on `device`, embeddings lie on the CPU. Raises ValueError if it cannot be opened.
    """

    def __init__(
        self, name: str, templates: Mapping[str, Sequence[str]] | None = None, device: str = "cpu"
    ):
        self.name, self._device = name, torch.device(device)
        model, self._transform, self.tokenizer = _open(name)
        self.model = model.to(self._device)
        self._templates = templates or {}
        size = model.visual.image_size
        self._size = [size, size] if isinstance(size, int) else list(size)

    @property
    def computes(self) -> str:
        """The activation and the steps from a picture to the model's input."""
        kinds = {type(module).__name__ for module in self.model.modules()}
        activations = sorted(kind for kind in kinds if kind.endswith("GELU"))
        return "; ".join([*activations, steps_of(self._transform)])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the model's weights."""
        return module_fingerprint(self.model)

    @own_settings()
    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Unit embeddings [N, D] of pictures [N, 3, H, W] in 0..1, always in full precision.

        Pictures of another size than the model's are resized in 8 bits, as saved ones are.
        """
        if list(pictures.shape[-2:]) == self._size:
            ready = self._transform.transforms[-1](pictures.clamp(0, 1))
        else:
            ready = torch.stack([self._transform(picture) for picture in as_images(pictures)])
        return self._encoded(self.model.encode_image, ready)

    @own_settings()
    @torch.no_grad()
    def classify(self, embeddings: Tensor, kind: str, labels: Sequence[str]) -> list[str]:
        """The most likely of `labels` for each of the embedded pictures [N, D].

        A label's probability is that of all its captions together: a style is seen wherever any
        object in that style is.
        """
        captions = self._caption_embeddings(kind, tuple(labels))
        with torch.autocast("cpu", enabled=False):
            scale = self.model.logit_scale.exp().cpu()
            logits = scale * embeddings @ captions.flatten(0, 1).T
        likelihood = logits.unflatten(1, captions.shape[:2]).logsumexp(2)
        return [labels[index] for index in likelihood.argmax(1).tolist()]

    def require(self, labels: Sequence[str]) -> None:
        """Any label will do."""

    @own_settings()
    @torch.no_grad()
    def score(self, embeddings: Tensor, captions: Sequence[str]) -> Tensor:
        """CLIP score of each picture with its caption: 2.5 max(cosine, 0) (Hessel et al., 2021)."""
        return SCORE_SCALE * (embeddings * self._read(captions)).sum(1).clamp(min=0)

    @torch.no_grad()
    def nearest(self, kind: str, label: str, labels: Sequence[str]) -> list[str]:
        """The other labels, those whose captions lie nearest to this one's first."""
        means = self._caption_embeddings(kind, tuple(labels)).mean(1)
        means = means / means.norm(dim=1, keepdim=True)
        order = (means @ means[labels.index(label)]).argsort(descending=True)
        return [labels[index] for index in order.tolist() if labels[index] != label]

    @cache  # noqa: B019
    def _caption_embeddings(self, kind: str, labels: tuple[str, ...]) -> Tensor:
        """Unit embeddings [labels, templates, D] of every label in every template."""
        templates = self._templates.get(kind, PLAIN_TEMPLATES)
        captions = [template.format(label) for label in labels for template in templates]
        return self._read(captions).unflatten(0, (len(labels), len(templates)))

    def _read(self, captions: Sequence[str]) -> Tensor:
        """Unit embeddings [N, D] of captions."""
        return self._encoded(self.model.encode_text, self.tokenizer(list(captions)))

    def _encoded(self, encode: Callable[..., Tensor], inputs: Tensor) -> Tensor:
        """What an encoder makes of inputs [N, ...], always in full precision, on the CPU."""
        with torch.autocast(self._device.type, enabled=False):
            parts = [encode(p.to(self._device), normalize=True) for p in inputs.split(AT_ONCE)]
        return torch.cat(parts).cpu()


def steps_of(transform: Callable[..., Tensor]) -> str:
    """What a transform does to a picture, in one line."""
    steps = getattr(transform, "transforms", [transform])
    return ", ".join(" ".join(str(step).split()) for step in steps)


@judge(*SCHEMES)
def open_clip_judge(
    name: str, classes: Sequence[str], templates: Mapping[str, Sequence[str]], device: str
) -> ClipJudge:
    """The open_clip model of this name, which needs no classes."""
    return ClipJudge(name, templates, device)


def _open(name: str) -> tuple[open_clip.CLIP, Compose, open_clip.SimpleTokenizer]:
    scheme, colon, source = name.partition(":")
    whole = bool(colon) and scheme in SCHEMES
    if whole:
        architecture, weights = f"{scheme}:{os.path.expanduser(source)}", ""
    else:
        architecture, _, weights = name.partition("/")
        weights = os.path.expanduser(weights)
    mend = "give local-dir:FOLDER or ARCHITECTURE/WEIGHTS, e.g. ViT-B-32-quickgelu/openai"
    with refused(f"The judge {name} could not be opened", mend), _callers_log():
        model, preprocess = open_clip.create_model_from_pretrained(
            architecture,
            pretrained=weights or None,
            force_quick_gelu=not whole and _wants_quick_gelu(architecture, weights),
        )
        return model.eval(), preprocess, open_clip.get_tokenizer(architecture)


@contextmanager
def _callers_log() -> Iterator[None]:
    """Leave no handler at the root of all loggers, to which open_clip says its first word."""
    handlers = logging.root.handlers[:]
    try:
        yield
    finally:
        logging.root.handlers[:] = handlers


def _wants_quick_gelu(architecture: str, weights: str) -> bool:
    """What the weights were trained with; ValueError for a file that could be of either kind.

    open_clip itself opens `ViT-B-32/openai` with GELU, and warns.
    """
    tag = open_clip.get_pretrained_cfg(architecture, weights)
    twin = f"{architecture}-quickgelu"
    if not tag and twin in open_clip.list_models() and Path(weights).is_file():
        raise ValueError(
            f"a file does not say whether it was trained with QuickGELU: give {twin}/FILE if so, "
            "else local-dir:FOLDER with an open_clip_config.json"
        )
    return bool(tag.get("quick_gelu"))
