"""What an erasure adds to one weight tensor, in the form that is smallest to keep."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from erase.core.mask import Mask, pack_bits, unpack_bits
from erase.core.names import holds_numbers
from erase.core.process import own_settings
from erase.core.subspace import TINY, eigen, gram


class NotFiniteError(ValueError):
    """Losses, gradients or weights left the finite numbers; going on would not bring them back."""


# A sparse float16 value takes its 16 bits, and every weight one more for the mask.
DENSE_FROM = 15 / 16
ROUNDING = 1e-16  # of the greatest squared singular value
LARGEST_CHANGE = 1e15  # of a weight, so that the squares of all of them add up in float32
MOST_WEIGHTS = 1 << 31  # of a tensor


@dataclass(frozen=True)
class SparseDelta:
    """Values [count] at the positions of a mask [...] of the weight's shape, in memory order."""

    mask: Tensor
    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """The weight's shape."""
        return self.mask.shape

    @property
    def count(self) -> int:
        """How many weights change."""
        return self.values.numel()

    @own_settings()
    def dense(self) -> Tensor:
        """The change as a float32 tensor of the weight's shape."""
        change = torch.zeros(self.shape)
        change[self.mask] = self.values.float()
        return change

    def tensors(self) -> dict[str, Tensor]:
        """The mask in bits, uint8 [ceil(N / 8)], its shape [dimensions], and the values [count]."""
        shape = torch.tensor(self.shape)
        return {"mask": pack_bits(self.mask), "shape": shape, "values": self.values}


@dataclass(frozen=True)
class DenseDelta:
    """A change of every weight: values [...] of the weight's shape."""

    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """The weight's shape."""
        return self.values.shape

    @property
    def count(self) -> int:
        """How many weights change."""
        return self.values.numel()

    def dense(self) -> Tensor:
        """The change as a float32 tensor of the weight's shape."""
        return self.values.float()

    def tensors(self) -> dict[str, Tensor]:
        """The values [...]."""
        return {"values": self.values}


@dataclass(frozen=True)
class LowRankDelta:
    """The product up @ down: a LoRA's B and A at scale 1.

    up [out, k] and down [k, in], or [out, k, 1, 1] and [k, in, h, w] for a convolution.
    `input_basis` [k, in flattened] is there if the change is a projection's, up = -W basis^T, so
    that it can be composed with other changes of W in order.
    """

    up: Tensor
    down: Tensor
    input_basis: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """The weight's shape."""
        return torch.Size((len(self.up), *self.down.shape[1:]))

    @property
    def count(self) -> int:
        """How many weights change."""
        return self.shape.numel()

    @property
    def rank(self) -> int:
        """The inner dimension k."""
        return len(self.down)

    @own_settings()
    def dense(self) -> Tensor:
        """The change as a float32 tensor of the weight's shape."""
        return (self.up.float().flatten(1) @ self.down.float().flatten(1)).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Both factors, up [out, k, ...] and down [k, in, ...]."""
        return {"up": self.up, "down": self.down}


# A change of one tensor that can be made dense, measured and written down.
Delta = SparseDelta | DenseDelta | LowRankDelta


def deltas_between(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    mask: Mask | None = None,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Delta]:
    """What turns tensors `before` into `after`, alike in names and shapes, to `dtype` precision.

    Each change is sparse where that is smaller, and left out if it is nothing in `dtype`. The mask
    is of the same shapes [...]. Raises RuntimeError if a masked-out weight changed, NotFiniteError
    if a change is not finite in `dtype`.
    """
    deltas: dict[str, Delta] = {}
    for name, old in before.items():
        change = after[name].detach().cpu().double() - old.cpu().double()
        kept = change != 0 if mask is None else mask.tensors[name].cpu()
        if change[~kept].any():
            raise RuntimeError(f"Masked-out weights of {name} changed; train them under the mask.")
        change = change.to(dtype)
        require_finite(name, change)
        if not change.any():
            continue
        sparse = kept.double().mean() < DENSE_FROM if mask is None else not kept.all()
        deltas[name] = SparseDelta(kept, change[kept]) if sparse else DenseDelta(change)
    return deltas


def require_finite(name: str, change: Tensor) -> None:
    """Raise NotFiniteError, naming the tensor, unless all of its change [...] is finite."""
    if not change.isfinite().all():
        raise NotFiniteError(f"The change of {name} is not finite; lower learning_rate, or step.")


def read_delta(parts: Mapping[str, Tensor]) -> Delta:
    """The delta whose `tensors` these are, of their shapes.

    Raises ValueError if a part is missing, does not fit the others, or holds what is no finite
    change of a weight.
    """
    kind = sorted(parts)
    if kind == ["down", "up"]:
        up, down = parts["up"], parts["down"]
        _require_factors(up, down)
        return LowRankDelta(up, down)
    if kind == ["mask", "shape", "values"]:
        mask, values = unpack_bits(parts["mask"], parts["shape"]), parts["values"]
        if values.shape != (int(mask.sum()),):
            raise ValueError(f"{list(values.shape)} values are there for {int(mask.sum())} places")
        _require_changes(values)
        return SparseDelta(mask, values)
    if kind != ["values"] or not parts["values"].numel():
        raise ValueError(f"{' and '.join(kind)} alone are no change of a weight")
    _require_changes(parts["values"])
    return DenseDelta(parts["values"])


def _require_factors(up: Tensor, down: Tensor) -> None:
    fit = up.dim() == down.dim() >= 2 and up.shape[1] == len(down) and up.shape[2:].numel() == 1
    if not fit or up.dtype != down.dtype or not up.numel() * down.numel():
        raise ValueError(f"shapes {list(up.shape)} and {list(down.shape)} are no up and down")
    if len(up) * down.shape[1:].numel() > MOST_WEIGHTS:
        raise ValueError(f"shapes {list(up.shape)} and {list(down.shape)} are of no layer")
    _require_changes(up, down)


def _require_changes(*factors: Tensor) -> None:
    """ValueError unless the product of these is of plain numbers, finite in float32."""
    largest = 1.0
    for factor in factors:
        if not holds_numbers(factor):
            raise ValueError(f"its numbers are of {factor.dtype}")
        largest *= float(factor.abs().max()) if factor.numel() else 0.0
    if not largest <= LARGEST_CHANGE:
        raise ValueError(f"its largest number may come to {largest:g}")


def scale_delta(delta: Delta, factor: float) -> Delta:
    """`factor` times the change; what half precision would round is of float32."""
    if isinstance(delta, LowRankDelta):
        input_basis = None if delta.input_basis is None else factor * delta.input_basis
        return LowRankDelta(factor * delta.up, delta.down, input_basis)
    scaled, values = factor * delta.values.float(), factor * delta.values
    return replace(delta, values=values if torch.equal(values.float(), scaled) else scaled)


def add_deltas(one: Delta, other: Delta) -> Delta:
    """Both changes of the same weight: low rank, sparse or dense, as they allow."""
    if isinstance(one, LowRankDelta) and isinstance(other, LowRankDelta):
        return LowRankDelta(torch.cat([one.up, other.up], 1), torch.cat([one.down, other.down]))
    total = one.dense() + other.dense()
    if isinstance(one, SparseDelta) and isinstance(other, SparseDelta):
        either = one.mask | other.mask
        return SparseDelta(either, total[either])
    return DenseDelta(total)


def compose_deltas(first: Delta, second: Delta) -> Delta:
    """The change that `first` and then `second` make of a weight W.

    A projection applies to what the first left: W (I - P1) (I - P2), and two are one again. Any
    other change is the same whatever it is added to.
    """
    if not isinstance(second, LowRankDelta) or second.input_basis is None:
        return add_deltas(first, second)
    if isinstance(first, LowRankDelta):
        passed = first.up.flatten(1) @ (first.down.flatten(1) @ second.input_basis.T)
    else:
        passed = first.dense().flatten(1) @ second.input_basis.T
    up = (second.up.flatten(1) - passed).view_as(second.up)
    both = add_deltas(first, LowRankDelta(up, second.down))
    if not isinstance(first, LowRankDelta) or not isinstance(both, LowRankDelta):
        return both
    if first.input_basis is None:
        return both
    then = second.input_basis - (second.input_basis @ first.down.flatten(1).T) @ first.input_basis
    return replace(both, input_basis=torch.cat([first.input_basis, then]))


def truncate_delta(delta: Delta, rank: int) -> LowRankDelta:
    """The nearest change of at most this rank (Eckart and Young), as two factors of equal size."""
    if isinstance(delta, LowRankDelta) and delta.rank <= rank:
        return delta
    shape, change = delta.shape, delta.dense().flatten(1).double()
    tall = len(change) > change.shape[1]
    rows = change.T if tall else change
    energies, axes = eigen(gram(rows.T))  # of the shorter side, in a fraction of an SVD's time
    axes, least = axes[:, -rank:].flip(1), max(TINY, ROUNDING * float(energies[-1]))
    root = energies[-rank:].flip(0).clamp_min(least) ** 0.25
    up, down = axes * root, axes.T @ rows / root[:, None]
    up, down = (part.float() for part in ((down.T, up.T) if tall else (up, down)))
    return LowRankDelta(
        up.reshape(len(up), -1, *[1] * (len(shape) - 2)), down.reshape(-1, *shape[1:])
    )


def cosine(one: Delta, other: Delta) -> float:
    """The cosine of the angle between two changes of the same weight, as vectors."""
    first, second = one.dense().flatten(), other.dense().flatten()
    return float(first @ second / (first.norm() * second.norm()).clamp_min(1e-30))


def largest_principal_cosine(one: LowRankDelta, other: LowRankDelta) -> float:
    """How near the closest directions come that two low-rank changes read: 1 if they share one."""
    spaces = []
    for delta in (one, other):
        rows = delta.down.flatten(1).double()
        left, singular, _ = torch.linalg.svd(rows.T, full_matrices=False)
        spaces.append(left[:, singular > 1e-6 * singular.max()])
    return float(torch.linalg.matrix_norm(spaces[0].T @ spaces[1], ord=2))
