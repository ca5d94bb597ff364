"""What a model that forgets is trained against: prompts bent towards the concept."""

from collections.abc import Callable

import torch
from torch import Tensor

OVERSHOOT = 2.0  # all steps together, beside the radius


def worst_shift(
    error: Callable[[Tensor], Tensor], embeddings: Tensor, steps: int, radius: float
) -> Tensor:
    """A shift of each sample's embeddings [B, tokens, width] that lowers its own error.

    `error` gives one number a sample [B] for embeddings. Normalised gradient steps, held to within
    `radius` times the norm of the sample's embeddings: the inner problem of adversarial unlearning
    (Zhang et al., AdvUnlearn, NeurIPS 2024), solved for what cross-attention reads.
    """
    embeddings = embeddings.detach()
    reach = radius * _norms(embeddings)
    shift = torch.zeros_like(embeddings)
    for _ in range(steps):
        shift.requires_grad_()
        (slope,) = torch.autograd.grad(error(embeddings + shift).sum(), shift)
        step = slope / _norms(slope).clamp_min(torch.finfo(slope.dtype).tiny)
        shift = shift.detach() - OVERSHOOT / steps * reach * step
        shift = shift * (reach / _norms(shift).clamp_min(1e-12)).clamp(max=1.0)
    return shift


def _norms(values: Tensor) -> Tensor:
    """The norm of each sample [B, 1, 1]."""
    return values.flatten(1).norm(dim=1)[:, None, None]
