"""Short names for tensors' values, to tell one base or forget set from another."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from erase.core.shards import full_tensor

DIGITS = 16


def fingerprint(tensor: Tensor, dtype: torch.dtype = torch.float16) -> str:
    """16 hex digits of the SHA-256 of values [...] in a half precision.

    They are alike for any wider copy of the values.
    """
    values = full_tensor(tensor.detach()).to(dtype).cpu().contiguous().view(torch.int16).numpy()
    return hashlib.sha256(values.data).hexdigest()[:DIGITS]


def combined(parts: Iterable[str]) -> str:
    """16 hex digits that stand for all parts, in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]


def module_fingerprint(module: nn.Module) -> str:
    """16 hex digits of the SHA-256 of all of a module's tensors, as they are."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:DIGITS]
