"""Several changes of one weight made into one that keeps what they agree on."""

from collections.abc import Sequence

import torch
from torch import Tensor


def ties(changes: Sequence[Tensor], density: float) -> Tensor:
    """TIES (Yadav et al., NeurIPS 2023): trim, elect a sign, take the mean of those that have it.

    changes: of one weight, of one shape [...]. Of each the int(N * density) largest numbers are
    kept, or one; then at each place the sign of their sum is elected. Zero where none is kept.
    """
    kept = torch.stack([_largest(change, density) for change in changes])
    agreeing = kept * (kept.sign() == kept.sum(0).sign())
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp_min(1)


def dare(changes: Sequence[Tensor], density: float, generator: torch.Generator) -> Tensor:
    """DARE (Yu et al., ICML 2024): of each a random share `density`, divided by it, all added up.

    On average that is the sum of the changes [...].
    """
    total = torch.zeros_like(changes[0])
    for change in changes:
        chosen = torch.rand(change.shape, generator=generator) < density
        total += change * chosen / density
    return total


def _largest(change: Tensor, density: float) -> Tensor:
    flat = change.abs().flatten()
    place = flat.topk(max(1, int(len(flat) * density))).indices
    kept = torch.zeros_like(flat)
    kept[place] = change.flatten()[place]
    return kept.view_as(change)
