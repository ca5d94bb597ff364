"""Passes that processes share: each takes some of the batches, and all learn the sum.

What they ask is an Accelerator, since a bare PartialState does not heed ACCELERATE_USE_CPU.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, parse_flag_from_env, reduce
from torch import Tensor

from erase.support.config import Config
from erase.support.errors import first_line

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Config):
    """Where a run computes.

    Args:
        device: auto for the best here, cpu, mps, cuda, cuda:1.
    """

    device: str = "auto"


def shard_of(items: Iterable[Item]) -> Iterator[Item]:
    """Every n-th item of n processes, from this one's place on."""
    state = Accelerator()
    return islice(items, state.process_index, None, state.num_processes)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same bits on each."""
    state = Accelerator()
    if state.num_processes == 1:
        return tensor
    return reduce(tensor.to(state.device), "sum").to(tensor.device)


def own_device(asked: str) -> str:
    """The device asked for, of "auto" the best there is; of several processes this one's own.

    It comes before anything is put on a device, so that every process takes its own. Raises
    ValueError if there is none such here, or the processes were launched on another.
    """
    if asked == "auto":
        return str(Accelerator().device)
    try:
        if torch.empty(0, device=asked).is_meta:
            raise RuntimeError("it computes nothing")
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"The device {asked} could not be opened ({first_line(error)}); give auto, or what is "
            f"here: {', '.join(devices_here())}."
        ) from error
    state = Accelerator()
    if state.num_processes == 1:
        return asked
    if torch.device(asked).type != state.device.type:
        raise ValueError(f"The device is {asked}, but the processes were launched on "
                         f"{state.device.type}; give --device {state.device.type}.")  # fmt: skip
    return str(state.device)


def devices_here() -> list[str]:
    """The devices that this process can compute on."""
    best = torch.accelerator.current_accelerator(check_available=True)
    if best is None:
        return ["cpu"]
    return ["cpu", *(f"{best.type}:{i}" for i in range(torch.accelerator.device_count()))]


def all_gather(item: Item) -> list[Item]:
    """What each process has, in their order."""
    return gather_object([item]) if Accelerator().num_processes > 1 else [item]


def shards_asked() -> bool:
    """Whether the launch asks for FSDP, and there are processes to share the weights.

    The environment is read, for on CPUs accelerate does not heed it.
    """
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and Accelerator().num_processes > 1
