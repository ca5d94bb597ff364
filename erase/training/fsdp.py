"""Training on weights that lie in shards, where the launch asks for FSDP.

What is sharded is a copy: the components themselves wait on the CPU, so that they are left as they
were whatever happens, and masks, saliency and deltas are of whole tensors as ever.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from erase.core.shards import full_tensor
from erase.support.distributed import launched
from erase.tasks.base import TrainedTask
from erase.training.preserve import only_trainable


def offload_asked() -> bool:
    """Whether shards are to wait on the CPU between their uses."""
    return parse_flag_from_env("FSDP_OFFLOAD_PARAMS")


@contextmanager
def sharded(task: TrainedTask, names: Iterable[str]) -> Iterator[dict[str, nn.Parameter]]:
    """While in force, copies of the components in shards do their work; the named weights learn.

    Every process has to do the same with the modules at the same time, so draw pictures before.
    """
    state, homes = launched(), {}
    mesh = torch.distributed.device_mesh.init_device_mesh(state.device.type, (state.num_processes,))
    try:
        for module in task.components.values():
            homes[module] = next(module.parameters()).device
            module.to("cpu")
        copies = {name: deepcopy(module) for name, module in task.components.items()}
        for module in copies.values():
            _shard(module, mesh)
        with task.replaced_modules(copies):
            everything = task.editable()
            shards = {name: everything[name] for name in names}
            with only_trainable(task, shards):
                yield shards
    finally:
        for module, home in homes.items():
            module.to(home)


def gather_full(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU."""
    return {name: full_tensor(parameter.detach()).cpu() for name, parameter in parameters.items()}


def _shard(module: nn.Module, mesh: "torch.distributed.device_mesh.DeviceMesh") -> None:
    """In the units that diffusers and transformers name for it, inner ones first, then the rest."""
    from torch.distributed.fsdp import fully_shard

    units = getattr(module, "_no_split_modules", None) or ()
    parts = [
        part for part in module.modules() if type(part).__name__ in units and part is not module
    ]
    for part in (*reversed(parts), module):
        kind = type(part)
        fully_shard(part, mesh=mesh, reshard_after_forward=True)
        # fully_shard gives the module a class of its own; transformers looks up by class what a
        # model records of its layers, and would find nothing. The hooks that shard it stay.
        part.__class__ = kind
