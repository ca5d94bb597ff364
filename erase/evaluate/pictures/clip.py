"""Zero-shot labels and CLIP scores through any open_clip model."""

from collections.abc import Mapping, Sequence
from functools import cache

import open_clip
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from erase.core.fingerprint import module_fingerprint
from erase.models.opening import default_judge
from erase.prompts.catalogue import Catalogue
from erase.support.errors import first_line

CHUNK = 64
SCORE_SCALE = 2.5
PLAIN_TEMPLATES = ("{}", "a {}", "a picture of a {}")


class ClipJudge:
    """An open_clip model that names what it sees.

    `name` is `local-dir:FOLDER`, `hf-hub:REPO`, or an architecture and its weights, as in
    `ViT-B-32/openai` or `ViT-B-32/PATH`. `templates` gives, by kind of label, the captions that
    speak for a label, each with one `{}`. Raises ValueError if it cannot be opened.
    """

    def __init__(self, name: str, templates: Mapping[str, Sequence[str]] | None = None):
        self.name = name
        self.model, preprocess, self.tokenizer = _open(name)
        self._templates = templates or {}
        self._mean, self._std = _normalisation(preprocess)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 of the model's weights."""
        return module_fingerprint(self.model)

    @torch.no_grad()
    def embed(self, pictures: Tensor) -> Tensor:
        """Unit embeddings [N, D] of pictures [N, 3, H, W] in 0..1, always in full precision."""
        size = self.model.visual.image_size
        size = [size, size] if isinstance(size, int) else list(size)
        if list(pictures.shape[-2:]) != size:
            resized = v2.functional.resize(pictures, size[:1], v2.InterpolationMode.BICUBIC)
            pictures = v2.functional.center_crop(resized, size)
        ready = (pictures.clamp(0, 1) - self._mean) / self._std
        with torch.autocast("cpu", enabled=False):
            parts = [self.model.encode_image(part, normalize=True) for part in ready.split(CHUNK)]
        return torch.cat(parts)

    @torch.no_grad()
    def classify(self, embeddings: Tensor, kind: str, labels: Sequence[str]) -> list[str]:
        """The most likely of `labels` for each of the embedded pictures [N, D].

        A label's probability is that of all its captions together: a style is seen wherever any
        object in that style is.
        """
        captions = self._caption_embeddings(kind, tuple(labels))
        with torch.autocast("cpu", enabled=False):
            logits = self.model.logit_scale.exp() * embeddings @ captions.flatten(0, 1).T
        likelihood = logits.unflatten(1, captions.shape[:2]).logsumexp(2)
        return [labels[index] for index in likelihood.argmax(1).tolist()]

    def require(self, labels: Sequence[str]) -> None:
        """Any label will do."""

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
        """Unit embeddings [N, D] of captions, always in full precision."""
        tokens = self.tokenizer(list(captions)).split(CHUNK)
        with torch.autocast("cpu", enabled=False):
            return torch.cat([self.model.encode_text(part, normalize=True) for part in tokens])


def judge_of(name: str, catalogue: Catalogue | None) -> ClipJudge:
    """The judge of this name, or the one of models that draw such concepts.

    Raises ValueError if there is neither.
    """
    name = name or default_judge(catalogue)
    if name is None:
        raise ValueError(
            "There is no judge for this model; name one, e.g. --judge ViT-B-32/openai."
        )
    return ClipJudge(name, judge_templates(catalogue))


def judge_templates(catalogue: Catalogue | None) -> dict[str, list[str]]:
    """Captions to average a label over: every style for objects, every object for styles."""
    if catalogue is None:
        return {}
    return {
        "object": [catalogue.prompt("{}", style) for style in catalogue.styles],
        "style": [catalogue.prompt(object_, "{}") for object_ in catalogue.objects],
    }


def _open(name: str) -> tuple[nn.Module, nn.Module, open_clip.SimpleTokenizer]:
    architecture, _, weights = (name, "", "") if ":" in name else name.partition("/")
    try:
        model, preprocess = open_clip.create_model_from_pretrained(
            architecture, pretrained=weights or None
        )
        return model.eval(), preprocess, open_clip.get_tokenizer(architecture)
    except Exception as error:
        raise ValueError(
            f"The judge {name} could not be opened ({first_line(error)}); give local-dir:FOLDER or "
            "ARCHITECTURE/WEIGHTS, e.g. ViT-B-32/openai."
        ) from error


def _normalisation(preprocess: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of open_clip's own preprocessing, shaped for [N, 3, H, W]."""
    normalise = preprocess.transforms[-1]
    return tuple(torch.tensor(v).view(1, 3, 1, 1) for v in (normalise.mean, normalise.std))
