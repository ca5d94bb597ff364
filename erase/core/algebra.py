"""Scaling, adding, ordering and shortening the changes of one weight tensor."""

from dataclasses import replace

import torch
from torch import Tensor

from erase.core.delta import Delta, DenseDelta, LowRankDelta, SparseDelta


def scaled(delta: Delta, factor: float) -> Delta:
    """`factor` times the change."""
    if isinstance(delta, LowRankDelta):
        reads = None if delta.reads is None else factor * delta.reads
        return LowRankDelta(factor * delta.up, delta.down, reads)
    return replace(delta, values=factor * delta.values)


def added(one: Delta, other: Delta) -> Delta:
    """Both changes of the same weight: low rank, sparse or dense, as they allow."""
    if isinstance(one, LowRankDelta) and isinstance(other, LowRankDelta):
        return LowRankDelta(torch.cat([one.up, other.up], 1), torch.cat([one.down, other.down]))
    total = one.dense() + other.dense()
    if isinstance(one, SparseDelta) and isinstance(other, SparseDelta):
        either = one.mask | other.mask
        return SparseDelta(either, total[either])
    return DenseDelta(total)


def composed(first: Delta, second: Delta) -> Delta:
    """The change that `first` and then `second` make of a weight W.

    A projection applies to what the first left: W (I - P1) (I - P2), and two are one again. Any
    other change is the same whatever it is added to.
    """
    if not isinstance(second, LowRankDelta) or second.reads is None:
        return added(first, second)
    if isinstance(first, LowRankDelta):
        passed = first.up.flatten(1) @ (first.down.flatten(1) @ second.reads.T)
    else:
        passed = first.dense().flatten(1) @ second.reads.T
    up = (second.up.flatten(1) - passed).view_as(second.up)
    both = added(first, LowRankDelta(up, second.down))
    if not isinstance(first, LowRankDelta) or first.reads is None:
        return both
    then = second.reads - (second.reads @ first.down.flatten(1).T) @ first.reads
    return replace(both, reads=torch.cat([first.reads, then]))


def truncated(delta: Delta, rank: int) -> LowRankDelta:
    """The nearest change of at most this rank (Eckart and Young), as two factors of equal size."""
    if isinstance(delta, LowRankDelta) and delta.rank <= rank:
        return delta
    shape = delta.shape
    left, singular, right = torch.linalg.svd(delta.dense().flatten(1), full_matrices=False)
    root = singular[:rank].sqrt()
    up, down = left[:, :rank] * root, root[:, None] * right[:rank]
    return LowRankDelta(
        up.reshape(len(up), -1, *[1] * (len(shape) - 2)), down.reshape(-1, *shape[1:])
    )


def cosine(one: Delta, other: Delta) -> float:
    """The cosine of the angle between two changes of the same weight, as vectors."""
    first, second = one.dense().flatten(), other.dense().flatten()
    return float(first @ second / (first.norm() * second.norm()).clamp_min(1e-30))


def largest_principal_cosine(one: LowRankDelta, other: LowRankDelta) -> float:
    """How near the closest directions come that two low-rank changes read: 1 if they share one."""
    first, second = (_row_space(delta.down.flatten(1)) for delta in (one, other))
    return float(torch.linalg.matrix_norm(first.T @ second, ord=2))


def _row_space(rows: Tensor) -> Tensor:
    left, singular, _ = torch.linalg.svd(rows.T.double(), full_matrices=False)
    return left[:, singular > 1e-6 * singular.max()]
