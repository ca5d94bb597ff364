"""Activation subspaces from streamed second moments, and the weight edits that remove them."""

from dataclasses import dataclass

import torch
from torch import Tensor

NUMERICAL_RANK = 1e-10


@dataclass(frozen=True)
class Subspace:
    """Principal directions of activations: orthonormal `basis` [d, k], energies [k] descending.

    `mean` [d] is the activations' mean; an energy is a squared singular value.
    """

    basis: Tensor
    energies: Tensor
    mean: Tensor

    def scaled(self, alpha: float) -> Tensor:
        """Importance of each direction in 0..1: alpha r / ((alpha - 1) r + 1), r its energy share.

        Source: Kodge, Saha and Roy (2023), eq. 4.
        """
        share = self.energies / self.energies.sum()
        return alpha * share / ((alpha - 1) * share + 1)


class SubspaceFitter:
    """Sees activations batch by batch and keeps at most d x d numbers of them.

    While fewer samples than dimensions have come the samples themselves are kept, since their own
    n x n problem is then the smaller one; from there on the second moments X^T X are.
    """

    def __init__(self, dimension: int):
        self.dimension = dimension
        self.count = 0
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None
        self._sum = torch.zeros(dimension, dtype=torch.float64)

    def update(self, activations: Tensor) -> "SubspaceFitter":
        """Add activations [..., d]."""
        rows = activations.detach().reshape(-1, self.dimension).double().cpu()
        self.count += len(rows)
        self._sum += rows.sum(0)
        self._rows.append(rows)
        if self._gram is not None or self.count >= self.dimension:
            self._fold()
        return self

    def fit(self) -> Subspace:
        """The subspace of all activations so far; ValueError if there were none."""
        if self.count == 0:
            raise ValueError("No activations were seen; give the set at least one sample.")
        mean = self._sum / self.count
        if self._gram is not None:
            energies, basis = torch.linalg.eigh(self._gram)
            return _sorted_subspace(basis, energies, mean)
        rows = torch.cat(self._rows)
        energies, left = torch.linalg.eigh(rows @ rows.T)
        kept = energies > NUMERICAL_RANK * energies[-1]
        basis = rows.T @ left[:, kept] / energies[kept].sqrt()
        return _sorted_subspace(basis, energies[kept], mean)

    def _fold(self) -> None:
        rows = torch.cat(self._rows)
        gram = rows.T @ rows
        self._gram = gram if self._gram is None else self._gram + gram
        self._rows = []


def _sorted_subspace(basis: Tensor, energies: Tensor, mean: Tensor) -> Subspace:
    order = energies.argsort(descending=True)
    order = order[energies[order] > NUMERICAL_RANK * energies.max()]
    return Subspace(basis[:, order], energies[order], mean)


@dataclass(frozen=True)
class Projection:
    """The factored matrix P = left @ right [d, d] whose part of the input a weight is to lose."""

    left: Tensor
    right: Tensor

    def edit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Factors (up [out, k], down [k, d]) of the change that makes W (I - P)^T of W."""
        wide = weight.detach().double().cpu().flatten(1)
        return -wide @ self.right.T, self.left.T


def discriminative(
    forget: Subspace, retain: Subspace, forget_alpha: float, retain_alpha: float
) -> Projection:
    """P_f - P_f P_r with scaled projections: what is the forget space's alone.

    Source: Kodge, Saha and Roy (2023), eq. 6.
    """
    right = forget.basis.T
    kept = (right @ retain.basis) * retain.scaled(retain_alpha)
    left = forget.basis * forget.scaled(forget_alpha)
    return Projection(left, right - kept @ retain.basis.T)


def orthogonal(directions: Tensor, smallest: float = 1e-6) -> Projection:
    """The orthogonal projection onto the span of directions [d, k] of length about 1.

    What is shorter than `smallest` counts as rounding noise.
    """
    left, singular, _ = torch.linalg.svd(directions.double().cpu(), full_matrices=False)
    basis = left[:, singular > smallest]
    return Projection(basis, basis.T)


def null_space(forget: Subspace, retain: Subspace, rank: int) -> Projection:
    """The projection onto the `rank` strongest forget directions, cleared of the retain space.

    Inputs within the retain space are mapped to themselves exactly.
    """
    strongest = forget.basis[:, :rank]
    return orthogonal(strongest - retain.basis @ (retain.basis.T @ strongest))
