"""The evaluators that ask a judge about a folder of pictures: labels, captions, a reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from erase.evaluate.base import Judge, OpenJudge, ReadsCaptions, evaluator
from erase.evaluate.pictures.fidelity import (
    frechet_distance,
    kernel_distance,
    require_enough,
)
from erase.evaluate.pictures.judges import embedded, judge_protocol
from erase.evaluate.statistics import wilson_share
from erase.support.config import Config
from erase.support.pictures import load_folder


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


class Labels:
    """The share of pictures that a judge takes for each of the labels it chooses among."""

    name = "labels"

    def __init__(self, judge: Judge, labels: Sequence[str]):
        judge.require(labels)
        self._judge, self._labels = judge, list(labels)

    def protocol(self) -> dict[str, Any]:
        """The judge and its choice."""
        return judge_protocol(self._judge) | {"labels": self._labels}

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """The share of pictures that show each label."""
        seen = self._judge.classify(embedded(self._judge, pictures), "concept", self._labels)
        shares = {label: wilson_share([name == label for name in seen]) for label in self._labels}
        return {label: share.to_json() for label, share in shares.items()}


class Captions:
    """CLIP score of each picture with its caption; ValueError for a judge that reads none."""

    name = "clip_score"

    def __init__(self, judge: Judge, captions: Sequence[str]):
        if not isinstance(judge, ReadsCaptions):
            raise ValueError(f"The judge {judge.name} reads no captions; name an open_clip model.")
        self._judge, self._captions = judge, list(captions)

    def protocol(self) -> dict[str, Any]:
        """The judge and what it reads."""
        return judge_protocol(self._judge) | {"captions": self._captions}

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """Mean and standard error; ValueError unless there is a caption a picture."""
        if len(pictures) != len(self._captions):
            raise ValueError(
                f"There are {len(pictures)} pictures and {len(self._captions)} captions; give one "
                "a picture, in the order of their names."
            )
        scores = self._judge.score(embedded(self._judge, pictures), self._captions)
        error = float(scores.std()) / len(scores) ** 0.5 if len(scores) > 1 else None
        return {"value": float(scores.mean()), "standard_error": error, "n": len(scores)}


class Fidelity:
    """Fréchet and kernel distance to reference pictures, on a judge's picture embeddings."""

    name = "fidelity"

    def __init__(self, judge: Judge, reference: Sequence[Image]):
        require_enough(len(reference), len(reference))
        self._judge, self._reference = judge, embedded(judge, reference)

    def protocol(self) -> dict[str, Any]:
        """The extractor, which both distances depend on, and n."""
        return judge_protocol(self._judge) | {"reference_pictures": len(self._reference)}

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """Both distances with their intervals and n."""
        require_enough(len(pictures), len(self._reference))
        features = embedded(self._judge, pictures)
        return {
            "frechet_distance": frechet_distance(features, self._reference).to_json(),
            "kernel_distance": kernel_distance(features, self._reference).to_json(),
        }


@evaluator("labels", LabelsConfig)
def labels(config: LabelsConfig, judge: OpenJudge) -> Labels | None:
    """The share of each label, if there are any."""
    return Labels(judge(), config.labels) if config.labels else None


@evaluator("clip_score", CaptionsConfig)
def captions(config: CaptionsConfig, judge: OpenJudge) -> Captions | None:
    """The score of the captions, if there are any."""
    if not config.captions:
        return None
    try:
        text = Path(config.captions).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The captions {config.captions} cannot be read ({error}); give a text "
                         "file with a caption a line.") from error  # fmt: skip
    return Captions(judge(), text.removesuffix("\n").split("\n"))


@evaluator("fidelity", FidelityConfig)
def fidelity(config: FidelityConfig, judge: OpenJudge) -> Fidelity | None:
    """Distances to the reference, if there is one."""
    if not config.reference:
        return None
    reference = load_folder(Path(config.reference))
    return Fidelity(judge(), reference)
