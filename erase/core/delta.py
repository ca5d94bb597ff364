"""What an erasure adds to one weight tensor, in the form that is smallest to keep."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from erase.core.mask import Mask, pack_bits, unpack_bits


class NotFiniteError(ValueError):
    """Losses, gradients or weights left the finite numbers; going on would not bring them back."""


# A sparse float16 value takes its 16 bits, and every weight one more for the mask.
DENSE_FROM = 15 / 16


class Delta(Protocol):
    """A change of one tensor that can be made dense, measured and written down."""

    shape: torch.Size
    count: int

    def dense(self) -> Tensor:
        """The change as a float32 tensor of the weight's shape."""

    def tensors(self) -> dict[str, Tensor]:
        """The parts to write to a safetensors file, by short name."""


@dataclass(frozen=True)
class SparseDelta:
    """Values at a mask's positions, in memory order; zero elsewhere."""

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

    def dense(self) -> Tensor:
        """The change as a float32 tensor of the weight's shape."""
        change = torch.zeros(self.shape)
        change[self.mask] = self.values.float()
        return change

    def tensors(self) -> dict[str, Tensor]:
        """Bit-packed mask, its shape, and the values."""
        shape = torch.tensor(self.shape)
        return {"mask": pack_bits(self.mask), "shape": shape, "values": self.values}


@dataclass(frozen=True)
class DenseDelta:
    """A change of every weight."""

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
        """The values."""
        return {"values": self.values}


@dataclass(frozen=True)
class LowRankDelta:
    """The product up @ down: a LoRA's B and A at scale 1.

    up [out, k] and down [k, in], or [out, k, 1, 1] and [k, in, h, w] for a convolution. `reads`
    [k, in flattened] is there if the change is a projection's, up = -W reads^T, so that it can be
    composed with other changes of W in order.
    """

    up: Tensor
    down: Tensor
    reads: Tensor | None = None

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

    def dense(self) -> Tensor:
        """The change as a float32 tensor of the weight's shape."""
        return (self.up.float().flatten(1) @ self.down.float().flatten(1)).view(self.shape)

    def tensors(self) -> dict[str, Tensor]:
        """Both factors."""
        return {"up": self.up, "down": self.down}


def difference(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    mask: Mask | None = None,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Delta]:
    """What turns `before` into `after`, to `dtype` precision; sparse where that is smaller.

    Tensors whose change is nothing in `dtype` are left out. Raises RuntimeError if a masked-out
    weight changed, NotFiniteError if a change is not finite in `dtype`.
    """
    deltas: dict[str, Delta] = {}
    for name, old in before.items():
        change = after[name].detach().cpu().double() - old.cpu().double()
        kept = change != 0 if mask is None else mask.tensors[name].cpu()
        if change[~kept].any():
            raise RuntimeError(f"Masked-out weights of {name} changed; train them under the mask.")
        require_finite(name, change.to(dtype))
        if not change.to(dtype).any():
            continue
        sparse = kept.double().mean() < DENSE_FROM if mask is None else not kept.all()
        if sparse:
            deltas[name] = SparseDelta(kept, change[kept].to(dtype))
        else:
            deltas[name] = DenseDelta(change.to(dtype))
    return deltas


def require_finite(name: str, change: Tensor) -> None:
    """Raise NotFiniteError, naming the tensor, unless all of its change is finite."""
    if not change.isfinite().all():
        raise NotFiniteError(f"The change of {name} is not finite; lower learning_rate, or step.")


def read_delta(parts: Mapping[str, Tensor]) -> Delta:
    """The delta that wrote these parts."""
    if "up" in parts:
        return LowRankDelta(parts["up"], parts["down"])
    if "mask" in parts:
        return SparseDelta(unpack_bits(parts["mask"], parts["shape"].tolist()), parts["values"])
    return DenseDelta(parts["values"])
