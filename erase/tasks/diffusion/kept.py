"""What is read of prompts of which no training step may change what is read."""

from collections.abc import Mapping

from torch import Tensor

from erase.core.subspace import subspace_of

LEAST = 1e-6  # of the energy of what is read of the forgotten


def kept_directions(
    kept: Mapping[str, Tensor], forgotten: Mapping[str, Tensor], energy: float
) -> dict[str, Tensor]:
    """By place, as few directions [d, k] as hold this share of the energy of readings [..., d].

    Raises ValueError where they hold all that is read of the forgotten too.
    """
    found = {}
    for site, rows in kept.items():
        heard, other = (part.detach().cpu().double() for part in (rows, forgotten[site]))
        basis = found[site] = subspace_of(heard.flatten(0, -2)).top_energy_basis(energy)
        if (other - other @ basis @ basis.T).square().sum() < LEAST * other.square().sum():
            raise ValueError(
                f"What is kept takes {basis.shape[1]} directions, in which lies all that is read "
                "of what is to be forgotten; keep less, or lower --task.keep_energy."
            )
    return found
