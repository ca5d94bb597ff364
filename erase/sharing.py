"""Passes that processes share: each takes some of the batches, and all learn the sum."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import gather_object, reduce
from torch import Tensor

Item = TypeVar("Item")


def mine(items: Iterable[Item]) -> Iterator[Item]:
    """Every n-th item of n processes, from this one's place on."""
    state = PartialState()
    return islice(items, state.process_index, None, state.num_processes)


def total(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same bits on each."""
    return reduce(tensor, "sum") if PartialState().num_processes > 1 else tensor


def everyones(item: Item) -> list[Item]:
    """What each process has, in their order."""
    return gather_object([item]) if PartialState().num_processes > 1 else [item]
