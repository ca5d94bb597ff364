"""Contexts that borrow a task's weights for training and give them back as they were."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor, nn

from erase.core.snapshot import copy_of
from erase.tasks.base import Task


@contextmanager
def restored_parameters(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, Tensor]]:
    """Yield copies of the parameters and put them back, bit for bit, on the way out.

    They are for reading, for a frozen teacher may hold them too.
    """
    originals = {name: copy_of(parameter) for name, parameter in parameters.items()}
    try:
        yield originals
    finally:
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(originals[name])
                parameter.grad = None


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
