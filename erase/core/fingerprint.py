"""Short names for tensors' values, to tell one base or forget set from another."""

import hashlib
from collections.abc import Iterable

from torch import Tensor, nn

from erase.core.shards import full_tensor

DIGITS = 16


def fingerprint(tensor: Tensor) -> str:
    """16 hex digits of the SHA-256 of values [...] in float16, alike for any wider copy of them."""
    values = full_tensor(tensor.detach()).half().cpu().contiguous().numpy()
    return hashlib.sha256(values.tobytes()).hexdigest()[:DIGITS]


def combined(parts: Iterable[str]) -> str:
    """16 hex digits that stand for all parts, in their order."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:DIGITS]


def module_fingerprint(module: nn.Module) -> str:
    """16 hex digits of the SHA-256 of all of a module's tensors, as they are."""
    digest = hashlib.sha256()
    for tensor in module.state_dict().values():
        digest.update(tensor.contiguous().cpu().numpy().tobytes())
    return digest.hexdigest()[:DIGITS]
