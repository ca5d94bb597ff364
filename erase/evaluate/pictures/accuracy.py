"""How often pictures show what they were asked for, by group, and the groups' harmonic mean."""

from collections.abc import Sequence
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

from PIL.Image import Image

from erase.core.fingerprint import combined
from erase.evaluate.base import Judge, Measurement
from erase.evaluate.pictures.judges import embedded, judge_protocol
from erase.evaluate.statistics import wilson_share


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
