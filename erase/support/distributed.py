"""Work that processes share: each takes some of it, and all learn the sum or the whole.

It is set up by an Accelerator, since a bare PartialState does not heed ACCELERATE_USE_CPU.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, gather_object, parse_flag_from_env, reduce
from torch import Tensor

from erase.support.config import Config
from erase.support.errors import refused

Item = TypeVar("Item")
Made = TypeVar("Made")
PATIENCE = timedelta(days=365)  # one process may judge or write for hours while others wait


@dataclass(frozen=True, kw_only=True)
class DeviceConfig(Config):
    """Where a run computes.

    Args:
        device: auto for the best here, cpu, mps, cuda, cuda:1.
    """

    device: str = "auto"


def launched() -> AcceleratorState:
    """The processes of this launch; they wait for one another as long as it takes."""
    if not AcceleratorState._shared_state:
        Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
    return AcceleratorState()


def shard_of(items: Iterable[Item]) -> Iterator[Item]:
    """Every n-th item of n processes, from this one's place on."""
    state = launched()
    return islice(items, state.process_index, None, state.num_processes)


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all processes, the same bits on each."""
    state = launched()
    if state.num_processes == 1:
        return tensor
    return reduce(tensor.to(state.device), "sum").to(tensor.device)


def own_device(asked: str) -> str:
    """The device asked for, of "auto" the best there is; of several processes this one's own.

    It comes before anything is put on a device, so that every process takes its own. Raises
    ValueError if there is none such here, or the processes were launched on another.
    """
    if asked == "auto":
        return str(launched().device)
    mend = f"give auto, or what is here: {', '.join(devices_here())}"
    with refused(f"The device {asked} could not be opened", mend, RuntimeError, AssertionError):
        if torch.empty(0, device=asked).is_meta:
            raise RuntimeError("it computes nothing")
    state = launched()
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
    return gather_object([item]) if launched().num_processes > 1 else [item]


def of_first(item: Item) -> Item:
    """What the first process has, for all."""
    return all_gather(item)[0]


def shared_map(work: Callable[[Item], Made], items: Sequence[Item]) -> list[Made]:
    """What `work` makes of every item, in order; each process works on its share, all learn all.

    Every process must call it, with the same items. What is made should lie on the CPU.
    """
    shares = all_gather([work(items[i]) for i in shard_of(range(len(items)))])
    return [shares[i % len(shares)][i // len(shares)] for i in range(len(items))]


def shards_asked() -> bool:
    """Whether the launch asks for FSDP, and there are processes to share the weights.

    The environment is read, for on CPUs accelerate does not heed it.
    """
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and launched().num_processes > 1
