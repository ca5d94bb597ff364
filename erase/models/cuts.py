"""Parts of tensors, and where one tensor lies in another."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

# Axis, start (from the end where it is negative) and length; one after the other.
Cut = tuple[tuple[int, int, int], ...]


def cut_out(tensor: Tensor, cut: Cut) -> Tensor:
    """The part [...] of a tensor that a cut means, a view."""
    for axis, start, length in cut:
        tensor = tensor.narrow(axis, start % tensor.shape[axis], length)
    return tensor


def cuts(shape: Sequence[int], count: int) -> Iterator[Cut]:
    """Ways to cut `count` numbers out of a tensor: all, a part of one axis, or of two."""
    if prod(shape) == count:
        yield ()
    yield from _of_one_axis(shape, count)
    for axis, size in enumerate(shape):
        for length in {1, size // 2} if size % 2 == 0 else ():
            rest = [*shape[:axis], length, *shape[axis + 1 :]]
            later = [one for one in _of_one_axis(rest, count) if one[0][0] > axis]
            for start in range(0, size, length):
                yield from (((axis, start, length), *one) for one in later)


def _of_one_axis(shape: Sequence[int], count: int) -> Iterator[Cut]:
    for axis, size in enumerate(shape):
        length, rest = divmod(count * size, prod(shape))
        if rest == 0 and 0 < length < size:
            # What stands at the end does so behind any number of tokens.
            starts = [*range(0, size - length, length), -length]
            yield from (((axis, start, length),) for start in starts)


def numbers_of(tensor: Tensor) -> Tensor:
    """All numbers [n] in float64, on the CPU: not every device has it."""
    return tensor.detach().flatten().cpu().double()


def number_of(value: Any) -> float:
    """The first number of a tensor or a plain one."""
    return float(torch.as_tensor(value).flatten()[0])


def fitted(target: Tensor, part: Tensor) -> tuple[float, float]:
    """The weight of a part that makes up a target of its size, and the share that is left of it.

    Of what is not finite nothing is made up.
    """
    wanted, column = numbers_of(target), numbers_of(part)[:, None]
    if not (column.isfinite().all() and wanted.isfinite().all()):
        return 0.0, float("inf")
    found = torch.linalg.lstsq(column, wanted[:, None], driver="gelsd").solution[:, 0]
    left = (column @ found - wanted).norm() / wanted.norm().clamp_min(1e-30)
    return float(found), float(left)


def places_of(sample: Tensor, given: Tensor) -> Iterator[Cut]:
    """Every place in a tensor where a sample is, at whatever scale."""
    seen: set[tuple[int, int]] = set()
    limit = 5e-3 if given.dtype.itemsize < 4 else 1e-5
    for cut in cuts(given.shape, sample.numel()):
        part = cut_out(given, cut)
        key = (int(part.storage_offset()), part.numel())
        if key not in seen and part.any() and fitted(part, sample)[1] < limit:
            seen.add(key)
            yield cut
