"""What a caller may have set for the whole process, and what the library works with instead."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

import torch

_lock, _found = Lock(), list[torch.dtype]()  # the default dtype that each who is inside found


@contextmanager
def own_settings() -> Iterator[None]:
    """While in force, gradients are on, new tensors are of float32 on the CPU, and nothing is cast.

    A caller may have switched gradients off, or set another default device, dtype or autocast, and
    draws after it from the process' generator what it would have.
    """
    with ExitStack() as settings:
        settings.enter_context(torch.random.fork_rng([]))
        settings.enter_context(torch.inference_mode(False))
        settings.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            settings.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                settings.enter_context(torch.autocast(kind, enabled=False))
        with _lock:
            _found.append(torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        settings.callback(_leave)
        yield


def _leave() -> None:
    """Of threads that are here at once the last puts the caller's default dtype back."""
    with _lock:
        dtype = _found.pop()
        if not _found:
            torch.set_default_dtype(dtype)
