"""The evaluators of a folder of pictures: labels, accuracy, captions, a reference, partners."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import harmonic_mean
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from erase.core.fingerprint import combined
from erase.evaluate.base import Judge, Measurement, OpenJudge, ReadsCaptions, evaluator
from erase.evaluate.pictures.fidelity import frechet_distance, kernel_distance, require_enough
from erase.evaluate.pictures.judges import embedded, judge_protocol
from erase.evaluate.reports import mean_with_error, wilson_share
from erase.support.config import Config
from erase.support.distributed import shared_map
from erase.support.errors import refused
from erase.support.files import read_text
from erase.support.pictures import load_folder

Backbone = Literal["alex", "squeeze", "vgg"]


@dataclass(frozen=True)
class LabelsConfig(Config):
    """What a picture may show.

    Args:
        labels: what a judge chooses among for every picture.
    """

    labels: Sequence[str] = ()


@dataclass(frozen=True)
class CaptionsConfig(Config):
    """What the pictures were asked for.

    Args:
        captions: a text file with a caption a line, in the order of the pictures' names.
    """

    captions: str = ""


@dataclass(frozen=True)
class FidelityConfig(Config):
    """What the pictures should be like.

    Args:
        reference: a folder of pictures to take the distance to.
    """

    reference: str = ""


@evaluator("labels", LabelsConfig)
def labels(config: LabelsConfig, judge: OpenJudge) -> Measurement | None:
    """The share of pictures that a judge takes for each of the labels it chooses among, if any."""
    if not config.labels:
        return None
    opened, chosen = judge(), list(config.labels)
    opened.require(chosen)

    def shares(pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        seen = opened.classify(embedded(opened, pictures), "concept", chosen)
        return {one: wilson_share([name == one for name in seen]).to_json() for one in chosen}

    return Measurement("labels", judge_protocol(opened) | {"labels": chosen}, shares)


def accuracy(
    judge: Judge,
    labels: Sequence[str],
    expected: Sequence[str],
    groups: Sequence[str],
    erased: Sequence[str] = (),
    kept: Sequence[str] = (),
) -> Measurement:
    """A judge's accuracy against an expected label a picture.

    groups: a name a picture, by which accuracies are told apart. erased, kept: groups whose
    accuracy should be low and high; of errors erased and accuracies kept there is the harmonic
    mean. With groups of a concept, its synonyms and others that is MACE's H_o (Lu et al., CVPR
    2024). Raises ValueError for a group that no picture is of, and for a label that is expected but
    cannot be chosen.
    """
    if unknown := {*erased, *kept} - set(groups):
        raise ValueError(f"No prompt is of the group {unknown.pop()}; name groups of the file.")
    if missing := set(expected) - set(labels):
        raise ValueError(f"{missing.pop()} is asked for, but not among the labels; add it.")
    judge.require(labels)

    def figures(pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        seen = judge.classify(embedded(judge, pictures), "concept", labels)
        hits: dict[str, list[bool]] = {group: [] for group in groups}
        for name, wanted, group in zip(seen, expected, groups, strict=True):
            hits[group].append(name == wanted)
        shares = {group: wilson_share(of_group) for group, of_group in hits.items()}
        found: dict[str, Any] = {"by_group": {g or "all": s.to_json() for g, s in shares.items()}}
        if erased and kept:
            parts = [1 - shares[group].value for group in erased]
            parts += [shares[group].value for group in kept]
            found["harmonic_mean"] = round(harmonic_mean(parts), 4)
        return found

    told = {"labels": list(labels), "expected": combined(expected), "groups": combined(groups)}
    told |= {"erased": list(erased), "kept": list(kept)}
    return Measurement("accuracy", judge_protocol(judge) | told, figures)


@evaluator("clip_score", CaptionsConfig)
def captions(config: CaptionsConfig, judge: OpenJudge) -> Measurement | None:
    """The score of the captions in the file, if there is one."""
    if not config.captions:
        return None
    mend = "give a text file with a caption a line"
    with refused(f"The captions {config.captions} cannot be read", mend):
        text = read_text(Path(config.captions))
    return clip_score(judge(), text.removesuffix("\n").split("\n"))


def clip_score(judge: Judge, captions: Sequence[str]) -> Measurement:
    """CLIP score of each picture with its caption: mean and standard error.

    Raises ValueError for a judge that reads none, and unless there is a caption a picture.
    """
    if not isinstance(judge, ReadsCaptions):
        raise ValueError(f"The judge {judge.name} reads no captions; name an open_clip model.")

    def require(count: int) -> None:
        if count != len(captions):
            raise ValueError(
                f"There are {count} pictures and {len(captions)} captions; give one "
                "a picture, in the order of their names."
            )

    def score(pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        return mean_with_error(judge.score(embedded(judge, pictures), captions))

    told = judge_protocol(judge) | {"captions": list(captions)}
    return Measurement("clip_score", told, score, require)


@evaluator("fidelity", FidelityConfig)
def fidelity(config: FidelityConfig, judge: OpenJudge) -> Measurement | None:
    """Fréchet and kernel distance to the reference, if any, on a judge's picture embeddings."""
    if not config.reference:
        return None
    given, opened = load_folder(Path(config.reference)), judge()
    require = partial(require_enough, other=len(given))

    def distances(pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        features, reference = embedded(opened, pictures), embedded(opened, given)
        return {
            "frechet_distance": frechet_distance(features, reference).to_json(),
            "kernel_distance": kernel_distance(features, reference).to_json(),
        }

    told = {"reference_pictures": len(given), "reference": _fingerprint(given)}
    return Measurement("fidelity", judge_protocol(opened) | told, distances, require)


def _fingerprint(pictures: Sequence[Image]) -> str:
    """16 hex digits that stand for these pixels in this order, wherever they lie."""
    return combined(f"{p.size} {hashlib.sha256(p.tobytes()).hexdigest()}" for p in pictures)


@dataclass(frozen=True)
class PerceptualConfig(Config):
    """Pictures of the same prompts and seeds.

    Args:
        partners: a folder of the same prompts' pictures from another model, for LPIPS.
        backbone: LPIPS' own.
    """

    partners: str = ""
    backbone: Backbone = "alex"


def lpips(
    partners: Sequence[Image], backbone: Backbone = "alex", device: str = "cpu"
) -> Measurement:
    """LPIPS (Zhang et al., CVPR 2018) of every picture to its partner: mean and standard error.

    torchmetrics computes it; torchvision's backbone must be at hand or downloadable. Raises
    ValueError if either is missing, and unless there is a partner of its size for each picture.
    """
    mend = "install torchmetrics, and bring torchvision's weights to the hub cache"
    with refused(f"LPIPS with {backbone} cannot be opened", mend, ImportError, OSError):
        from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

        metric = LearnedPerceptualImagePatchSimilarity(backbone, normalize=True).to(device)

    def require(count: int, alike: bool = True) -> None:
        if count != len(partners) or not alike:
            raise ValueError(
                f"The {count} pictures and their {len(partners)} partners differ in "
                "number or size; draw both with the same prompts."
            )

    @torch.no_grad()
    def distances(pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        require(len(pictures), [p.size for p in pictures] == [p.size for p in partners])

        def distance(i: int) -> Tensor:
            return metric(*(to_tensor(of[i])[None].to(device) for of in (pictures, partners))).cpu()

        return mean_with_error(torch.stack(shared_map(distance, range(len(pictures)))))

    told = {"partners": len(partners), "pictures": _fingerprint(partners)}
    return Measurement("lpips", {"backbone": backbone, **told}, distances, require)


@evaluator("lpips", PerceptualConfig)
def perceptual(config: PerceptualConfig, judge: OpenJudge) -> Measurement | None:
    """LPIPS to the partners, if there are any."""
    if not config.partners:
        return None
    return lpips(load_folder(Path(config.partners)), config.backbone, judge.device)
