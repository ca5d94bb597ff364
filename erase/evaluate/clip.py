"""Zero-shot labels and CLIP scores through any open_clip model."""

from collections.abc import Mapping, Sequence

import open_clip
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

CHUNK = 64
SCORE_SCALE = 2.5
PLAIN_TEMPLATES = ("{}", "a {}", "a picture of a {}")


class ClipJudge:
    """An open_clip model that names what it sees.

    `name` is any open_clip name or `local-dir:FOLDER`; `templates` gives, by kind of label, the
    captions a label is averaged over, each with one `{}`.
    """

    def __init__(self, name: str, templates: Mapping[str, Sequence[str]] | None = None):
        self.name = name
        self.model, preprocess = open_clip.create_model_from_pretrained(name)
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(name)
        self._templates = templates or {}
        self._mean, self._std = _normalisation(preprocess)

    @torch.no_grad()
    def classify(self, pictures: Tensor, kind: str, labels: Sequence[str]) -> list[str]:
        """The most likely of `labels` for each of the pictures [N, 3, H, W] in 0..1."""
        logits = self.embed_pictures(pictures) @ self._label_embeddings(kind, labels)
        return [labels[index] for index in logits.argmax(1).tolist()]

    @torch.no_grad()
    def score(self, pictures: Tensor, captions: Sequence[str]) -> Tensor:
        """CLIP score of each picture with its caption: 2.5 max(cosine, 0) (Hessel et al., 2021)."""
        text = self.model.encode_text(self.tokenizer(list(captions)), normalize=True)
        cosine = (self.embed_pictures(pictures) * text).sum(1)
        return SCORE_SCALE * cosine.clamp(min=0)

    @torch.no_grad()
    def embed_pictures(self, pictures: Tensor) -> Tensor:
        """Unit embeddings [N, D] of pictures [N, 3, H, W] in 0..1."""
        size = self.model.visual.image_size
        size = [size, size] if isinstance(size, int) else list(size)
        if list(pictures.shape[-2:]) != size:
            resized = v2.functional.resize(pictures, size[:1], v2.InterpolationMode.BICUBIC)
            pictures = v2.functional.center_crop(resized, size)
        ready = (pictures.clamp(0, 1) - self._mean) / self._std
        parts = [self.model.encode_image(part, normalize=True) for part in ready.split(CHUNK)]
        return torch.cat(parts)

    def _label_embeddings(self, kind: str, labels: Sequence[str]) -> Tensor:
        templates = [t.format for t in self._templates.get(kind, PLAIN_TEMPLATES)]
        return open_clip.build_zero_shot_classifier(
            self.model, self.tokenizer, list(labels), templates, num_classes_per_batch=8
        )


def _normalisation(preprocess: nn.Module) -> tuple[Tensor, Tensor]:
    """Mean and deviation of open_clip's own preprocessing, shaped for [N, 3, H, W]."""
    normalise = preprocess.transforms[-1]
    return tuple(torch.tensor(v).view(1, 3, 1, 1) for v in (normalise.mean, normalise.std))


def proportion(hits: Sequence[bool]) -> dict[str, float | int | list[float]]:
    """A share of hits with its n and 95 % Wilson interval."""
    n, z = len(hits), 1.959964
    share = sum(hits) / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    interval = [round(max(0.0, centre - half), 4), round(min(1.0, centre + half), 4)]
    return {"value": round(share, 4), "interval": interval, "n": n}
