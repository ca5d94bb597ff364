"""Training on weights that lie in shards, where the launch asks for FSDP.

What is sharded is a copy: the components themselves wait on the CPU, so that they are left as they
were whatever happens, and masks, saliency and deltas are of whole tensors as ever.
"""

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from transformers import PreTrainedModel

from erase.core.shards import in_shards, whole
from erase.preserve import only_trainable
from erase.tasks.base import Task


def shards_asked() -> bool:
    """Whether the launch asks for FSDP, and there are processes to share the weights.

    The environment is read, for on CPUs accelerate does not heed it.
    """
    return parse_flag_from_env("ACCELERATE_USE_FSDP") and Accelerator().num_processes > 1


@contextmanager
def sharded(task: Task, names: Iterable[str]) -> Iterator[dict[str, nn.Parameter]]:
    """While in force, copies of the components in shards do their work; the named weights learn.

    Every process has to do the same with the modules at the same time, so draw pictures before.
    """
    state, homes = Accelerator(), {}
    mesh = torch.distributed.device_mesh.init_device_mesh(state.device.type, (state.num_processes,))
    try:
        for module in task.components.values():
            homes[module] = next(module.parameters()).device
            module.to("cpu")
        copies = {name: copy.deepcopy(module) for name, module in task.components.items()}
        with task.standing_in(copies):
            everything = task.editable()
            with only_trainable(task, {name: everything[name] for name in names}):
                for module in copies.values():
                    _shard(module, mesh)
                everything = task.editable()
                yield {name: everything[name] for name in names}
    finally:
        for module, home in homes.items():
            module.to(home)


def collected(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole copies on the CPU."""
    return {name: whole(parameter.detach()).cpu() for name, parameter in parameters.items()}


def _shard(module: nn.Module, mesh: "torch.distributed.device_mesh.DeviceMesh") -> None:
    """In the units that diffusers and transformers name for it, inner ones first, then the rest."""
    from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

    options = {"mesh": mesh, "reshard_after_forward": True, "offload_policy": OffloadPolicy()}
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=mesh.device_type == "cuda")
    units = getattr(module, "_no_split_modules", None) or ()
    for part in reversed([part for part in module.modules() if type(part).__name__ in units]):
        fully_shard(part, **options)
    rest = [module]
    if isinstance(module, PreTrainedModel):
        # What a model of transformers records goes by its class, which fully_shard would change.
        rest = [part for part in module.modules()
                if not all(map(in_shards, part.parameters(recurse=False)))]  # fmt: skip
    for part in rest:
        fully_shard(part, **options)
