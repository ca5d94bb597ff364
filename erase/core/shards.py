"""Tensors [...] that may lie in shards over processes, as PyTorch's fully_shard lays them."""

from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def in_shards(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether each process holds a part of the tensor [...]."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor [...] in one piece; every process has to ask for one that lies in shards."""
    return tensor.full_tensor() if in_shards(tensor) else tensor


def own_part(tensor: Tensor) -> Tensor:
    """This process' part of a tensor [...] that lies in shards; all of any other."""
    return tensor.to_local() if in_shards(tensor) else tensor


def distributed_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """The whole `tensor` on the device of `reference` [...], and in shards if that is."""
    tensor = tensor.to(reference.device)
    if not in_shards(reference):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = reference.device_mesh, reference.placements
    return distribute_tensor(tensor, mesh, placements, src_data_rank=None)
