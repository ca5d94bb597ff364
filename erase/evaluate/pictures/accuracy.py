"""How often pictures show what they were asked for, by group, and the groups' harmonic mean."""

from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from PIL.Image import Image

from erase.core.fingerprint import combined
from erase.evaluate.base import Judge
from erase.evaluate.pictures.judges import embedded, judge_protocol
from erase.evaluate.statistics import wilson_share


class Accuracy:
    """A judge's accuracy against an expected label a picture.

    groups: a name a picture, by which accuracies are told apart. erased, kept: groups whose
    accuracy should be low and high. Raises ValueError for a group that no picture is of, and for a
    label that is expected but cannot be chosen.
    """

    name = "accuracy"

    def __init__(
        self,
        judge: Judge,
        labels: Sequence[str],
        expected: Sequence[str],
        groups: Sequence[str],
        erased: Sequence[str] = (),
        kept: Sequence[str] = (),
    ):
        unknown = {*erased, *kept} - set(groups)
        if unknown:
            raise ValueError(f"No prompt is of the group {unknown.pop()}; name groups of the file.")
        missing = set(expected) - set(labels)
        if missing:
            raise ValueError(f"{missing.pop()} is asked for, but not among the labels; add it.")
        judge.require(labels)
        self._judge, self._labels = judge, list(labels)
        self._expected, self._groups = list(expected), list(groups)
        self._erased, self._kept = list(erased), list(kept)

    def protocol(self) -> dict[str, Any]:
        """The judge, its choice, and which groups should go and stay."""
        return judge_protocol(self._judge) | {
            "labels": self._labels,
            "expected": combined(self._expected),
            "groups": combined(self._groups),
            "erased": self._erased,
            "kept": self._kept,
        }

    def figures(self, pictures: Sequence[Image], folder: Path) -> dict[str, Any]:
        """Accuracy of each group, and the harmonic mean of errors erased and accuracies kept.

        With groups of a concept, its synonyms and others that is MACE's H_o (Lu et al., CVPR 2024).
        """
        seen = self._judge.classify(embedded(self._judge, pictures), "concept", self._labels)
        hits = [a == b for a, b in zip(seen, self._expected, strict=True)]
        accuracy = {
            group or "all": wilson_share(
                [hit for hit, of in zip(hits, self._groups, strict=True) if of == group]
            )
            for group in dict.fromkeys(self._groups)
        }
        found: dict[str, Any] = {"by_group": {g: share.to_json() for g, share in accuracy.items()}}
        if self._erased and self._kept:
            parts = [1 - accuracy[group].value for group in self._erased]
            parts += [accuracy[group].value for group in self._kept]
            found["harmonic_mean"] = round(harmonic_mean(parts), 4)
        return found
