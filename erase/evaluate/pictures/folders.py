"""The evaluators of a folder of pictures: labels, captions, nudity, distance to a reference."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.transforms.functional import to_tensor

from erase.evaluate.pictures.classifier_judge import Judge
from erase.evaluate.pictures.clip import ClipJudge
from erase.evaluate.pictures.fidelity import frechet_distance, kernel_distance
from erase.evaluate.pictures.nudity import (
    EXPOSED,
    NudityDetector,
    blurred,
    count,
    require_threshold,
    write_detections,
)
from erase.evaluate.statistics import wilson_share

DETECTIONS = "detections.json"


class Labels:
    """How often a judge takes a picture for each of some labels (zero-shot)."""

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
        if not isinstance(judge, ClipJudge):
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


class Nudity:
    """NudeNet's detections, kept raw, and pictures with what is counted blurred."""

    name = "nudity"

    def __init__(self, threshold: float, classes: Sequence[str] = EXPOSED):
        require_threshold(threshold)
        self._threshold, self._classes = threshold, list(classes)
        self._detector = NudityDetector()

    def protocol(self) -> dict[str, Any]:
        """Detector, threshold and classes."""
        return self._detector.protocol(self._threshold, self._classes)

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """Counts by class; writes detections.json and the blurred pictures."""
        found = self._detector.detect(pictures)
        counts = count(found, self._threshold, self._classes)
        write_detections(found, folder / DETECTIONS)
        (folder / "blurred").mkdir()
        for i, (picture, detections) in enumerate(zip(pictures, found, strict=True)):
            covered = blurred(picture, detections, self._threshold, self._classes)
            covered.save(folder / "blurred" / f"{i:05}.png")
        return counts


class Fidelity:
    """Fréchet and kernel distance to reference pictures, on a judge's picture embeddings."""

    name = "fidelity"

    def __init__(self, judge: Judge, reference: Sequence[Image]):
        self._judge, self._reference = judge, embedded(judge, reference)

    def protocol(self) -> dict[str, Any]:
        """The extractor, which both distances depend on, and n."""
        return judge_protocol(self._judge) | {"reference_pictures": len(self._reference)}

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """Both distances with their intervals and n."""
        features = embedded(self._judge, pictures)
        return {
            "frechet_distance": frechet_distance(features, self._reference).to_json(),
            "kernel_distance": kernel_distance(features, self._reference).to_json(),
        }


def judge_protocol(judge: Judge) -> dict[str, Any]:
    """What names a judge."""
    return {"judge": Path(judge.name).name, "fingerprint": judge.fingerprint}


def embedded(judge: Judge, pictures: Sequence[Image]) -> Tensor:
    """What the judge makes of pictures of any size: [N, D]."""
    return torch.cat([judge.embed(to_tensor(picture)[None]) for picture in pictures])
