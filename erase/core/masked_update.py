"""Training under a mask: masked-out weights stay bit-equal under any optimizer."""

from collections.abc import Callable, Mapping
from types import TracebackType

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from erase.core.mask import Mask
from erase.core.shards import distributed_like


class MaskedUpdate:
    """A context in which `optimizer` moves only the weights a mask keeps.

    Masking gradients alone is not enough: weight decay and momentum move weights whose gradient is
    0. So gradients are masked as they are made (clipping then sees only what counts) and
    masked-out values are put back after every step, from `originals`, copies of the parameters as
    they were. Mask and originals are of the parameters' shapes. Source: SalUn, eq. 5, as an
    invariant.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        parameters: Mapping[str, nn.Parameter],
        mask: Mask,
        originals: Mapping[str, Tensor],
    ):
        self._optimizer = optimizer
        self._entries = [
            (parameter, distributed_like(mask.tensors[name], parameter), originals[name])
            for name, parameter in parameters.items()
        ]
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> "MaskedUpdate":
        for parameter, kept, _ in self._entries:
            self._handles.append(parameter.register_post_accumulate_grad_hook(_masking(kept)))
        self._handles.append(self._optimizer.register_step_post_hook(self._restore))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _restore(self, *_: object) -> None:
        for parameter, kept, original in self._entries:
            parameter.copy_(torch.where(kept, parameter, original))


def _masking(kept: Tensor) -> Callable[[nn.Parameter], None]:
    def mask(parameter: nn.Parameter) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~kept, 0)

    return mask


class SoftThreshold:
    """The proximal step of an l1 penalty on how far parameters are from where they started.

    Source: SalUn's soft variant (Fan et al., ICLR 2024, appendix), as a true proximal step.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], originals: Mapping[str, Tensor]):
        self._pairs = [(parameter, originals[name]) for name, parameter in parameters.items()]

    @torch.no_grad()
    def step(self, amount: float) -> None:
        """Bring every change closer to 0 by `amount`, the smaller ones to exactly 0."""
        for parameter, original in self._pairs:
            change = parameter - original
            change = change.sign() * (change.abs() - amount).clamp_min(0)
            parameter.copy_(torch.where(change == 0, original, original + change))
