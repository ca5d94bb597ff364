"""Weights as they were, put back for a while: what a frozen teacher costs."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


class Snapshot:
    """Copies of some parameters as they are now, which can take their places in the modules."""

    def __init__(self, modules: Iterable[nn.Module], parameters: Iterable[nn.Parameter]):
        copies = {id(p): nn.Parameter(p.detach().clone(), requires_grad=False) for p in parameters}
        self._places = [
            (part, key, copies[id(own)])
            for module in modules
            for part in module.modules()
            for key, own in part._parameters.items()
            if id(own) in copies
        ]

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """While in force the modules work with the copies; nothing is learnt of them."""
        own = [part._parameters[key] for part, key, _ in self._places]
        try:
            for part, key, copy in self._places:
                part._parameters[key] = copy
            yield
        finally:
            for (part, key, _), parameter in zip(self._places, own, strict=True):
                part._parameters[key] = parameter
