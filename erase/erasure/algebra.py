"""Erasures as things to scale, merge, compose, subtract and compare."""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import combinations
from pathlib import Path
from typing import Any

from torch import Tensor

from erase.core.delta import (
    Delta,
    DenseDelta,
    LowRankDelta,
    SparseDelta,
    add_deltas,
    compose_deltas,
    cosine,
    largest_principal_cosine,
    scale_delta,
    truncate_delta,
)
from erase.core.merging import dare, ties
from erase.core.names import lora_holds
from erase.core.process import own_settings
from erase.core.seeds import seeded
from erase.erasure.erasure import Erasure
from erase.erasure.recipe import Truncation, coarsest, for_any_base, joint_request
from erase.erasure.weights import low_rank_of


def scale(erasure: Erasure, factor: float) -> Erasure:
    """The erasure at another strength."""
    deltas = {name: scale_delta(delta, factor) for name, delta in erasure.deltas.items()}
    return Erasure(deltas, _joint_recipe([erasure], "scale", factor=factor))


def merge(erasures: Sequence[Erasure]) -> Erasure:
    """The sum of all changes: what stacked LoRAs do; the order plays no part."""
    return _joined(erasures, partial(reduce, add_deltas), "merge")


def ties_merge(erasures: Sequence[Erasure], density: float = 0.2) -> Erasure:
    """The changes by TIES: of each the largest, where they have the sign that outweighs."""
    return _joined(erasures, _dense(partial(ties, density=density)), "ties", density=density)


def dare_merge(erasures: Sequence[Erasure], density: float = 0.2, seed: int = 0) -> Erasure:
    """The sum of random shares of all changes, by DARE, each of its size on average."""
    join = _dense(partial(dare, density=density, generator=seeded(seed)))
    return _joined(erasures, join, "dare", density=density, seed=seed)


def _dense(merge: Callable[[list[Tensor]], Tensor]) -> Callable[[Sequence[Delta]], Delta]:
    """What makes one change of several by merging them whole."""
    return lambda changes: DenseDelta(merge([change.dense() for change in changes]))


def compose(erasures: Sequence[Erasure]) -> Erasure:
    """The changes one after the other: a projection applies to what those before it left."""
    return _joined(erasures, partial(reduce, compose_deltas), "compose")


def difference(one: Erasure, other: Erasure) -> Erasure:
    """What turns a model with `other` in force into one with `one`.

    Its base is the model with `other`, whose fingerprints nobody has taken.
    """
    change = _joined([one, scale(other, -1.0)], partial(reduce, add_deltas), "difference")
    request = {"request": one.facts.request}
    return Erasure(change.deltas, for_any_base(change.recipe) | request)


@own_settings()
def low_rank(erasure: Erasure, rank: int) -> Erasure:
    """The nearest erasure that is a stock LoRA of at most this rank, with its measured error.

    A LoRA holds no biases, norms or embeddings: the recipe's `truncation` lists what it leaves out
    and gives the relative error |D - D'| / |D| of the whole change D, before any earlier cut.
    Raises ValueError where it would leave out all.
    """
    kept = {
        name: truncate_delta(delta, rank)
        for name, delta in erasure.deltas.items()
        if lora_holds(name) and (isinstance(delta, LowRankDelta) or len(delta.shape) in (2, 4))
    }
    if not kept:
        raise ValueError("This erasure changes no layer that a LoRA can hold; export a pipeline.")
    lost = total = 0.0
    for name, delta in erasure.deltas.items():
        change = delta.dense()
        rest = change - kept[name].dense() if name in kept else change
        lost, total = lost + float(rest.square().sum()), total + float(change.square().sum())
    before = erasure.facts.truncation or Truncation()
    # What a cut loses is at right angles to what it keeps, and so to what another loses of that.
    gone = min(1.0, before.relative_error**2)
    error = round((gone + (1 - gone) * lost / (total or 1.0)) ** 0.5, 6)
    left_out = sorted({*before.left_out, *erasure.deltas} - set(kept))
    recipe = {"truncation": {"rank": rank, "relative_error": error, "left_out": left_out}}
    return Erasure(kept, erasure.recipe | recipe)


def largest_rank(erasure: Erasure) -> int:
    """The largest rank of its changes; ValueError unless all are of low rank."""
    ranks = [delta.rank for delta in low_rank_of(erasure.deltas).values()]
    if len(ranks) < len(erasure.deltas):
        raise ValueError("This erasure is no LoRA; give --lora_rank, to cut it to one.")
    return max(ranks, default=0)


def export_lora(erasure: Erasure, folder: str | Path, rank: int) -> float:
    """Write a stock LoRA of at most this rank; the relative error of what that leaves out.

    It is 0, to rounding, for low-rank erasures of that rank and less. Raises ValueError for
    pipelines that load no LoRA.
    """
    if not erasure.facts.base.loads_lora:
        raise ValueError("Pipelines of this family load no LoRA; export a pipeline.")
    lora = low_rank(erasure, rank)
    lora.save_pretrained(folder)
    return lora.recipe["truncation"]["relative_error"]


@own_settings()
def interference(one: Erasure, other: Erasure) -> list[dict[str, Any]]:
    """How two erasures meet, tensor by tensor: a row for each that both change.

    `cosine` of the changes; `undone`, the share of the first that the second takes back;
    `overlap`, the share of the smaller mask that lies in the larger, beside what chance gives;
    `principal_cosine` of the directions two low-rank changes read. Raises ValueError for erasures
    of different bases.
    """
    _check_same_base([one, other])
    return [
        {"tensor": name, **_meeting(delta, other.deltas[name])}
        for name, delta in one.deltas.items()
        if name in other.deltas
    ]


def _meeting(one: Delta, other: Delta) -> dict[str, float]:
    angle = cosine(one, other)
    ratio = float(other.dense().norm() / one.dense().norm())
    facts = {"cosine": angle, "undone": max(0.0, -angle * ratio)}
    if isinstance(one, SparseDelta) and isinstance(other, SparseDelta):
        smaller, larger = sorted((one.mask, other.mask), key=lambda mask: int(mask.sum()))
        facts["overlap"] = float((smaller & larger).sum() / smaller.sum().clamp_min(1))
        facts["overlap_by_chance"] = float(larger.double().mean())
    if isinstance(one, LowRankDelta) and isinstance(other, LowRankDelta):
        facts["principal_cosine"] = largest_principal_cosine(one, other)
    return {key: round(value, 4) for key, value in facts.items()}


@own_settings()
def _joined(
    erasures: Sequence[Erasure],
    join: Callable[[Sequence[Delta]], Delta],
    operation: str,
    **facts: Any,
) -> Erasure:
    """The erasure whose change of each tensor is what `join` makes of all changes of it."""
    _check_same_base(erasures)
    for one, other in combinations(erasures, 2):
        families = {one.facts.base.family, other.facts.base.family} - {""}
        if len(families) > 1 and one.deltas.keys().isdisjoint(other.deltas):
            raise ValueError(f"The erasures were made for {' and '.join(sorted(families))} models; "
                             "join only erasures of one base.")  # fmt: skip
    if not 0 < facts.get("density", 1) <= 1:
        raise ValueError(f"density is {facts['density']}; give a share in (0, 1].")
    changes: dict[str, list[Delta]] = {}
    for erasure in erasures:
        for name, delta in erasure.deltas.items():
            changes.setdefault(name, []).append(delta)
    deltas = {name: join(of_tensor) for name, of_tensor in changes.items()}
    return Erasure(deltas, _joint_recipe(erasures, operation, **facts))


def _check_same_base(erasures: Sequence[Erasure]) -> None:
    for one, other in combinations(erasures, 2):
        base, another = one.facts.base, other.facts.base
        for name in one.deltas.keys() & other.deltas.keys():
            same_shape = one.deltas[name].shape == other.deltas[name].shape
            if not (same_shape and base.agrees(name, another)):
                raise ValueError(
                    f"The erasures were made for different bases ({name} differs); "
                    "join only erasures of one base."
                )


def _joint_recipe(erasures: Sequence[Erasure], operation: str, **facts: Any) -> dict[str, Any]:
    """The bases' fingerprints together, all concepts, and the parts' recipes without reports.

    Of bases in several dtypes the coarsest is noted, which tells all of them. They load LoRA files
    if those of all parts load. The size at which parts were made stands if it is the same of all.
    """
    bases = [erasure.facts.base for erasure in erasures]
    base: dict[str, Any] = {"model": "its base"}
    for erasure in erasures:
        base |= erasure.recipe.get("base", {})
    for kind in ("fingerprints", "bfloat16"):
        base[kind] = {name: told for one in bases for name, told in getattr(one, kind).items()}
    base["dtype"] = coarsest({one.dtype for one in bases})
    base["loads_lora"] = all(one.loads_lora for one in bases)
    parts = [
        {key: value for key, value in erasure.recipe.items() if key not in ("base", "report")}
        for erasure in erasures
    ]
    sizes = {erasure.facts.size for erasure in erasures}
    return {
        "base": base,
        "task": {"config": {"size": sizes.pop() if len(sizes) == 1 else 0}},
        "request": joint_request([erasure.facts.request for erasure in erasures]),
        "method": operation,
        "parts": parts,
        **facts,
    }
