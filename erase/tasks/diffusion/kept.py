"""What is read of prompts of which no training step may change what is read."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erase.core.subspace import subspace_of
from erase.tasks.diffusion.places import TEXT

if TYPE_CHECKING:
    from erase.tasks.diffusion.task import DiffusionTask

LEAST = 1e-6  # of the energy of what is read of the forgotten


def kept_directions(task: "DiffusionTask") -> dict[str, Tensor]:
    """By place, as few directions [d, k] as hold the energy asked of what is read of the kept.

    Raises ValueError where they hold all that is read of the forgotten too.
    """
    found = {}
    # Guidance reads the empty prompt beside every other.
    texts = ["", *task.config.keep], [prompt.text for prompt in task.prompts.forget]
    kept, forgotten = map(task.readings, texts)
    for site, rows in kept.items():
        heard, other = (part.detach().cpu().double() for part in (rows, forgotten[site]))
        fitted = subspace_of(heard.flatten(0, -2))
        basis = found[site] = fitted.top_energy_basis(task.config.keep_energy)
        if (other - other @ basis @ basis.T).square().sum() < LEAST * other.square().sum():
            raise ValueError(
                f"What is kept takes {basis.shape[1]} directions, in which lies all that is read "
                "of what is to be forgotten; keep less, or lower --task.keep_energy."
            )
    return found


def by_tensor(task: "DiffusionTask", directions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The directions of its place by tensor that reads there; a bias reads a 1."""
    found = {name: directions[site] for site, names in task.sites(TEXT).items() for name in names}
    biases = {name.removesuffix("weight") + "bias" for name in found} & task.editable().keys()
    return found | {name: torch.ones(1, 1).double() for name in biases}
