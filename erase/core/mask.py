"""Exact-k saliency masks over many tensors, without ever concatenating or sorting them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from erase.core.seeds import seeded

Selection = Literal["top", "bottom", "random", "random_per_layer", "none"]
Scope = Literal["global", "layer"]
WEIGHTS_AT_ONCE = 1 << 24


@dataclass(frozen=True)
class Mask:
    """Which weights may change: a boolean tensor of each one's shape, True where it may."""

    tensors: Mapping[str, Tensor]

    @property
    def kept(self) -> int:
        """How many weights may change."""
        return sum(int(mask.sum()) for mask in self.tensors.values())

    @property
    def total(self) -> int:
        """How many weights there are."""
        return sum(mask.numel() for mask in self.tensors.values())


def build_mask(
    scores: Mapping[str, Tensor],
    density: float,
    selection: Selection = "top",
    seed: int = 0,
    scope: Scope = "global",
) -> Mask:
    """Keep exactly int(N * density) of all N weights, by score or by one of the control rules.

    Scores are of the weights' shapes [...] and not negative. "top" keeps the most salient (SalUn),
    "bottom" the least, "random" as many anywhere, "random_per_layer" as many per tensor as "top"
    would, "none" all of them (no mask). Weights tied at the threshold are kept in parameter order,
    then in memory order, until the count is reached ("bottom" drops them in that order). With scope
    "layer" the rule holds within each tensor, N being its own weights. Raises ValueError for a
    density outside (0, 1], and for an unknown selection or scope.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density is {density}; give a share of the weights in (0, 1].")
    for name, value, kind in (("selection", selection, Selection), ("scope", scope, Scope)):
        if value not in get_args(kind):
            known = ", ".join(map(repr, get_args(kind)))
            raise ValueError(f"{name} is {value!r}; choose one of {known}.")
    parts = [{name: score} for name, score in scores.items()] if scope == "layer" else [scores]
    masks = [_select(part, density, selection, seed + i) for i, part in enumerate(parts)]
    return Mask({name: tensor for mask in masks for name, tensor in mask.tensors.items()})


def _select(scores: Mapping[str, Tensor], density: float, selection: Selection, seed: int) -> Mask:
    if selection == "none":
        return Mask({name: torch.ones_like(s, dtype=torch.bool) for name, s in scores.items()})
    total = sum(score.numel() for score in scores.values())
    count = int(total * density)
    if selection == "top":
        return _keep_highest(scores, count)
    if selection == "bottom":
        dropped = _keep_highest(scores, total - count)
        return Mask({name: ~mask for name, mask in dropped.tensors.items()})
    noise = _Noise({name: score.shape for name, score in scores.items()}, seed)
    if selection == "random":
        return _keep_highest(noise, count)
    counts = {name: int(mask.sum()) for name, mask in _keep_highest(scores, count).tensors.items()}
    per_layer = {
        name: _keep_highest({name: part}, counts[name]).tensors[name]
        for name, part in noise.items()
    }
    return Mask(per_layer)


class _Noise(Mapping[str, Tensor]):
    """Uniform scores of these shapes, drawn anew at each pass, so that one tensor lives at a time.

    Only whole passes, as `items` and `values` make them, give the same numbers each time.
    """

    def __init__(self, shapes: Mapping[str, torch.Size], seed: int):
        self._shapes, self._seed = shapes, seed

    def __iter__(self) -> Iterator[str]:
        self._generator = seeded(self._seed)
        return iter(self._shapes)

    def __getitem__(self, name: str) -> Tensor:
        return torch.rand(self._shapes[name], generator=self._generator)

    def __len__(self) -> int:
        return len(self._shapes)


def _keep_highest(scores: Mapping[str, Tensor], count: int) -> Mask:
    if count == 0:
        return Mask({name: torch.zeros_like(s, dtype=torch.bool) for name, s in scores.items()})
    threshold, ties_left = _kth_highest(scores, count)
    tensors = {}
    for name, score in scores.items():
        bits = _bits(score)
        mask, tied = bits > threshold, bits == threshold
        if tied.any():
            tied &= tied.flatten().cumsum(0).view_as(tied) <= ties_left
            ties_left -= int(tied.sum())
        tensors[name] = mask | tied
    return Mask(tensors)


def _kth_highest(scores: Mapping[str, Tensor], count: int) -> tuple[int, int]:
    """The count-th highest score's bits and how many of its equals belong to the highest count.

    Non-negative floats order as their bit patterns do, so two histograms of 16 bits each, over
    the tensors one chunk at a time, find it exactly.
    """
    high = torch.zeros(1 << 16, dtype=torch.long)
    for bits in _chunks(scores):
        high += torch.bincount(bits >> 16, minlength=1 << 16)
    bucket, count = _descend(high, count)
    low = torch.zeros(1 << 16, dtype=torch.long)
    for bits in _chunks(scores):
        low += torch.bincount(bits[bits >> 16 == bucket] & 0xFFFF, minlength=1 << 16)
    rest, count = _descend(low, count)
    return (bucket << 16) | rest, count


def _descend(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin that holds the count-th highest entry, and its rank within that bin."""
    from_top = histogram.flip(0).cumsum(0)
    position = int(torch.searchsorted(from_top, count))
    above = int(from_top[position - 1]) if position else 0
    return len(histogram) - 1 - position, count - above


def _chunks(scores: Mapping[str, Tensor]) -> Iterator[Tensor]:
    for score in scores.values():
        for chunk in score.flatten().split(WEIGHTS_AT_ONCE):
            yield _bits(chunk).cpu()


def _bits(score: Tensor) -> Tensor:
    # Adding zero turns -0.0 into 0.0, whose bits are the smallest.
    return (score.float() + 0.0).contiguous().view(torch.int32)


def pack_bits(mask: Tensor) -> Tensor:
    """Eight weights a byte, the first in the lowest bit: uint8 [ceil(N / 8)]."""
    flat = mask.flatten().cpu()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: Tensor) -> Tensor:
    """The boolean mask that `pack_bits` packed, of the shape [dimensions].

    Raises ValueError if the two do not fit.
    """
    sizes, bytes_ = shape.tolist(), tuple(packed.shape)
    plain = isinstance(sizes, list) and all(type(size) is int and size > 0 for size in sizes)
    if not plain or packed.dtype != torch.uint8 or bytes_ != (-(-math.prod(sizes) // 8),):
        raise ValueError(f"{bytes_} bytes of {packed.dtype} are no mask of shape {sizes!r:.60}")
    bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    return bits.flatten()[: math.prod(sizes)].bool().view(sizes)
