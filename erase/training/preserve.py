"""Contexts that borrow a task's weights for training and give them back as they were."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from erase.core.snapshot import copy_of
from erase.support.distributed import launched
from erase.tasks.base import Task, TrainedTask


@contextmanager
def restored_parameters(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """Yield copies of the parameters and put them back, bit for bit, on the way out.

    So are their gradients. The copies are for reading, for a frozen teacher may hold them too.
    """
    originals = {name: copy_of(parameter) for name, parameter in parameters.items()}
    slopes = {name: parameter.grad for name, parameter in parameters.items()}
    try:
        yield originals
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(originals[name])
                parameter.grad = slopes[name]


def only_trainable(
    task: Task, parameters: Mapping[str, nn.Parameter]
) -> AbstractContextManager[None]:
    """Let `parameters` alone, of all the task's modules hold, require gradients."""
    return only_trainable_of((*task.components.values(), *task.frozen.values()), parameters)


@contextmanager
def only_trainable_of(
    modules: Iterable[nn.Module], parameters: Mapping[str, nn.Parameter]
) -> Iterator[None]:
    """Let `parameters` alone, of all these modules hold, require gradients."""
    chosen = {id(parameter) for parameter in parameters.values()}
    flags = [(p, p.requires_grad) for module in modules for p in module.parameters()]
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def sharded(task: TrainedTask, names: Iterable[str]) -> Iterator[dict[str, nn.Parameter]]:
    """While in force, copies of the components in shards do their work; the named weights learn.

    The components themselves wait on the CPU, so that they are left as they were whatever happens,
    and masks, saliency and deltas are of whole tensors as ever. Every process has to do the same
    with the modules at the same time, so draw pictures before.
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
