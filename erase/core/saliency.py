"""Weight saliency: how strongly each weight pulls on a loss, batch by batch."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from erase.core.precision import LossScale, at_least_float32, widened
from erase.core.process import own_settings

Estimator = Literal["signed_sum", "abs_sum", "fisher"]
Term = Callable[[Tensor], Tensor]
Adder = Callable[[nn.Parameter], None]
_TERMS: dict[str, Term] = {
    "signed_sum": lambda gradient: gradient,
    "abs_sum": torch.abs,
    "fisher": torch.square,
}


@own_settings()
def accumulate(
    parameters: Mapping[str, nn.Parameter],
    losses: Iterable[Tensor],
    estimator: Estimator = "signed_sum",
    total: Term = lambda tensor: tensor,
) -> dict[str, Tensor]:
    """Score every weight from the gradients of `losses`, a scalar [] a batch; of weights' shapes.

    "signed_sum" is |sum of gradients| (SalUn; Fan et al., ICLR 2024, eq. 4), "abs_sum" the sum of
    their magnitudes, "fisher" the sum of their squares (the empirical Fisher diagonal, of batches
    as large as the caller made them). `losses` is consumed lazily and each gradient is folded in as
    soon as it is made, so that one gradient tensor lives at a time (in float16 those of one batch,
    whose losses are scaled). Sums are of float64, so that their order, which `total`, the sum over
    processes that share the losses, may change, does not show in the scores. Gradients that were
    there before are dropped. A weight no loss reaches scores 0. Raises ValueError for an unknown
    estimator, if `losses` is empty, or a loss or score is not finite.
    """
    if estimator not in _TERMS:
        known = ", ".join(map(repr, _TERMS))
        raise ValueError(f"estimator is {estimator!r}; choose one of {known}.")
    scores = {
        # Apple's GPUs have no float64.
        name: torch.zeros_like(p, dtype=torch.float32 if p.device.type == "mps" else torch.float64)
        for name, p in parameters.items()
    }
    scale = LossScale(parameters.values())
    term = _TERMS[estimator]
    adders = [(p, partial(_add, scores[name], term, scale)) for name, p in parameters.items()]
    # What is scaled may have to be made again, so that it is not folded in as soon as it is made.
    with ExitStack() as hooks:
        for parameter, add in () if scale else adders:
            hooks.callback(parameter.register_post_accumulate_grad_hook(add).remove)
        for parameter in parameters.values():
            parameter.grad = None
        batches, broken = total(torch.tensor(_backward_each(losses, scale, adders))).tolist()
    if broken:
        raise ValueError("A loss of the forget set is not finite; lower the learning rate of the "
                         "base, or use bfloat16 or float32.")  # fmt: skip
    if not batches:
        raise ValueError("The forget set is empty, so no weight has a saliency; give it samples.")
    return {name: _finished(name, total(scores.pop(name)), p) for name, p in parameters.items()}


def _finished(name: str, score: Tensor, parameter: Tensor) -> Tensor:
    score = score.abs_().to(at_least_float32(parameter.dtype))
    if not score.isfinite().all():
        raise ValueError(
            f"The saliency of {name} is not finite; use a base in bfloat16 or float32."
        )
    return score


def fisher_ratio(forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """f / (f + r) of scores [...]: in 0..1, ordered as f / r is, 0 for what matters to neither."""
    tiny = torch.finfo(torch.float32).tiny
    return {name: f / (f + retain[name]).clamp_min(tiny) for name, f in forget.items()}


def _add(score: Tensor, term: Term, scale: LossScale, parameter: nn.Parameter) -> None:
    if parameter.grad is not None:
        gradient = widened(parameter.grad)
        score.add_(term(gradient / scale.factor.item() if scale else gradient))
    parameter.grad = None


def _backward_each(
    losses: Iterable[Tensor], scale: LossScale, adders: Iterable[tuple[nn.Parameter, Adder]]
) -> tuple[int, int]:
    """How many there were, up to one that is not finite, and whether there was such a one."""
    batches = 0
    for loss in losses:
        if not loss.isfinite():
            return batches, 1
        scale.backward(loss)
        for parameter, add in adders:
            add(parameter)
        batches += 1
    return batches, 0
