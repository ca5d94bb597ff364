"""Opening any judge by its name, and what all evaluators ask of one."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from erase.bundled import EMOJI, JUDGE
from erase.core.process import own_settings
from erase.evaluate.base import JUDGES, Judge
from erase.evaluate.pictures import classifier_judge
from erase.evaluate.pictures.clip import AT_ONCE, open_clip_judge
from erase.prompts.catalogue import Catalogue
from erase.support.distributed import shared_map

TOGETHER = 16  # pictures in memory, which may be large


@own_settings()
def open_judge(
    name: str,
    classes: Sequence[str] = (),
    templates: Mapping[str, Sequence[str]] | None = None,
    device: str = "cpu",
) -> Judge:
    """The judge that a registered scheme opens, `timm/resnet50`, or else open_clip.

    classes: of a classifier's own weights, in order. templates: captions that speak for a label, by
    its kind. Raises ValueError if it cannot be opened.
    """
    scheme = re.split("[:/]", name, maxsplit=1)[0]
    return JUDGES.all().get(scheme, open_clip_judge)(name, classes, templates or {}, device)


def judge_of(name: str, catalogue: Catalogue | None, device: str = "cpu") -> Judge:
    """The judge of this name, or the one of models that draw such concepts.

    Raises ValueError if there is neither.
    """
    chosen = name or default_judge(catalogue)
    if chosen is None:
        raise ValueError(
            "There is no judge for this model; name one, e.g. --judge ViT-B-32-quickgelu/openai."
        )
    return open_judge(chosen, templates=judge_templates(catalogue), device=device)


def default_judge(catalogue: Catalogue | None) -> str | None:
    """The bundled judge for models whose concepts the bundled one draws too; none for others."""
    known = Catalogue.of_model(EMOJI)
    if not catalogue or not known:
        return None
    pairs = (catalogue.objects, known.objects), (catalogue.styles, known.styles)
    return f"local-dir:{JUDGE}" if all(set(a) <= set(b) for a, b in pairs) else None


def judge_templates(catalogue: Catalogue | None) -> dict[str, list[str]]:
    """Captions to average a label over: every style for objects, every object for styles."""
    if catalogue is None:
        return {}
    return {
        "object": [catalogue.prompt("{}", style) for style in catalogue.styles],
        "style": [catalogue.prompt(object_, "{}") for object_ in catalogue.objects],
    }


WITH_PATHS = tuple(f"{library}//" for library in classifier_judge.LIBRARIES)


def judge_protocol(judge: Judge) -> dict[str, Any]:
    """What names a judge and what it computes; where its files lie is left out."""
    parts = judge.name.split("/")
    in_a_library = parts[0] in classifier_judge.LIBRARIES and parts[1]  # no whole path follows
    kept = 2 if in_a_library else not judge.name.startswith(("local-dir:", *WITH_PATHS))
    name = "/".join([*parts[:kept], *parts[kept:][-1:]])
    # Other packages' judges may be older than the question.
    computes = getattr(judge, "computes", "pictures as its own package reads them")
    return {"judge": name, "fingerprint": judge.fingerprint, "computes": computes}


def judge_line(judge: Judge) -> str:
    """The same in one line."""
    told = judge_protocol(judge)
    return f"{told['judge']} {told['fingerprint']} ({told['computes']})"


def embedded(judge: Judge, pictures: Sequence[Image]) -> Tensor:
    """What the judge makes of pictures of any size, seen together where sizes agree: [N, D].

    Processes share them. Of all pictures only this is kept.
    """

    def some(start: int) -> Tensor:
        shown = map(to_tensor, pictures[start : start + TOGETHER])
        rows = groupby(shown, key=lambda picture: picture.shape)
        return torch.cat([judge.embed(torch.stack(list(row))) for _, row in rows])

    return torch.cat(shared_map(some, range(0, len(pictures), TOGETHER)))


def embedded_drawn(judge: Judge, pictures: Tensor) -> Tensor:
    """What the judge makes of pictures [N, 3, H, W] in 0..1, which processes share: [N, D]."""
    return torch.cat(shared_map(judge.embed, pictures.split(AT_ONCE)))
