"""Other tensors in the places of a module's own, for a while."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from erase.core.shards import in_shards


@contextmanager
def in_place_of(modules: Iterable[nn.Module], others: Mapping[int, Tensor]) -> Iterator[None]:
    """While in force the modules work with `others` in the places of their tensors, by their ids.

    On the way out every place holds the very tensor that it held.
    """
    parts = [part for module in modules for part in module.modules()]
    held: list[dict[str, Any]] = [kind for p in parts for kind in (p._parameters, p._buffers)]
    places = [(kind, key, own) for kind in held for key, own in kind.items() if id(own) in others]
    try:
        for kind, key, own in places:
            kind[key] = others[id(own)]
        yield
    finally:
        for kind, key, own in places:
            kind[key] = own


BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_copies: WeakValueDictionary[int, Tensor] = WeakValueDictionary()


def copy_of(tensor: Tensor) -> Tensor:
    """A copy of a tensor [...] as it is now, for reading; one that is still held is shared."""
    now, known = tensor.detach(), _copies.get(id(tensor))
    if in_shards(now):
        return now.clone()
    if known is None or not _same_bits(known, now):
        known = _copies[id(tensor)] = now.clone()
    return known


def _same_bits(one: Tensor, other: Tensor) -> bool:
    alike = (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)
    bits = BITS[one.dtype.itemsize]
    return alike and torch.equal(one.view(bits), other.view(bits))


class Snapshot:
    """Copies of some parameters as they are now: what a frozen teacher costs."""

    def __init__(self, modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter]):
        self._modules = list(modules)
        # Held, so that no other tensor comes to their ids.
        self._own = list({id(parameter): parameter for parameter in parameters}.values())
        self._held = [copy_of(p) for p in self._own]
        self._copies = {
            id(own): nn.Parameter(copy, requires_grad=False)
            for own, copy in zip(self._own, self._held, strict=True)
        }

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While in force the modules work with the copies; nothing is learnt of them."""
        with in_place_of(self._modules, self._copies):
            yield
