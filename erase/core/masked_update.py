"""Training under a mask: masked-out weights stay bit-equal under any optimizer."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from erase.core.mask import Mask
from erase.core.shards import distributed_like


@contextmanager
def masked_update(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    mask: Mask,
    originals: Mapping[str, Tensor],
) -> Iterator[None]:
    """While in force, `optimizer` moves only the weights a mask keeps.

    Masking gradients alone is not enough: weight decay and momentum move weights whose gradient is
    0. So gradients are masked as they are made (clipping then sees only what counts) and masked-out
    values are put back after every step, from `originals`, copies of the parameters as they were.
    Mask and originals are of the parameters' shapes. Source: SalUn, eq. 5, as an invariant.
    """
    entries = [
        (parameter, distributed_like(mask.tensors[name], parameter), originals[name])
        for name, parameter in parameters.items()
    ]

    @torch.no_grad()
    def restore(*_: object) -> None:
        for parameter, kept, original in entries:
            parameter.copy_(torch.where(kept, parameter, original))

    with ExitStack() as hooks:
        for parameter, kept, _ in entries:
            masking = partial(_mask_gradient, kept)
            hooks.enter_context(parameter.register_post_accumulate_grad_hook(masking))
        hooks.enter_context(optimizer.register_step_post_hook(restore))
        yield


def _mask_gradient(kept: Tensor, parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        parameter.grad.masked_fill_(~kept, 0)


@torch.no_grad()
def shrink_changes_(
    parameters: Mapping[str, nn.Parameter], originals: Mapping[str, Tensor], amount: float
) -> None:
    """Bring every change of the parameters closer to 0 by `amount`, smaller ones to exactly 0.

    That is the proximal step of an l1 penalty on them. Source: SalUn's soft variant (Fan et al.,
    ICLR 2024, appendix), as a true proximal step.
    """
    for name, parameter in parameters.items():
        change = parameter - originals[name]
        change = change.sign() * (change.abs() - amount).clamp_min(0)
        parameter.copy_(torch.where(change == 0, originals[name], originals[name] + change))
