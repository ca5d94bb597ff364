"""Activation subspaces from streamed second moments."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

NUMERICAL_RANK, FEW = 1e-10, 4


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix without negative ones."""
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        # It may fail on sound matrices with many equal eigenvalues, as inputs that are never active
        # make them; the singular vectors of such a matrix are its eigenvectors.
        vectors, values, _ = torch.linalg.svd(matrix)
        return values.flip(0), vectors.flip(1)


@dataclass(frozen=True)
class Subspace:
    """Principal directions of activations: orthonormal `basis` [d, k], energies [k] descending.

    An energy is a squared singular value of the `count` stacked activations; `means` [g, p, d]
    holds the mean of each group of them at each position, if they have positions.
    """

    basis: Tensor
    energies: Tensor
    means: Tensor
    count: int

    def scaled(self, alpha: float) -> Tensor:
        """Importance of each direction in 0..1: alpha r / ((alpha - 1) r + 1), r its energy share.

        Source: Kodge, Saha and Roy (2023).
        """
        share = self.energies / self.energies.sum()
        return alpha * share / ((alpha - 1) * share + 1)

    def moment(self) -> Tensor:
        """The second moments X^T X / n [d, d]."""
        return (self.basis * self.energies) @ self.basis.T / self.count

    def moment_about(self, centre: Tensor) -> Tensor:
        """The second moments of X - centre [d, d]; groups must be of about one size."""
        cross = torch.outer(self.means.mean((0, 1)), centre)
        return self.moment() - cross - cross.T + torch.outer(centre, centre)

    def holding(self, share: float) -> "Subspace":
        """As few of the strongest directions as hold this share of the energy; all for 1."""
        reached = self.energies.cumsum(0) / self.energies.sum()
        rank = int((reached < share).sum()) + 1
        return replace(self, basis=self.basis[:, :rank], energies=self.energies[:rank])


class SubspaceFitter:
    """Sees activations batch by batch and keeps at most d x d numbers of them.

    While samples are far fewer than dimensions they are kept themselves, since their own n x n
    problem is then the smaller one; from there on the second moments X^T X are.
    """

    def __init__(self, dimension: int):
        self.dimension = dimension
        self.count = 0
        self._rows: list[Tensor] = []
        self._gram: Tensor | None = None
        self._groups: dict[str, tuple[Tensor, int]] = {}

    def update(self, activations: Tensor, group: str = "") -> "SubspaceFitter":
        """Add activations [n, d] of a group, or [n, p, d] at p positions, as of a text's tokens."""
        placed = activations.detach().cpu()
        placed = placed[:, None] if placed.ndim == 2 else placed
        total, count = self._groups.get(group, (torch.zeros_like(placed[0]).double(), 0))
        self._groups[group] = total + placed.sum(0, dtype=torch.float64), count + len(placed)
        rows = placed.flatten(0, 1)
        self.count += len(rows)
        self._rows.append(rows)
        if self._gram is not None or FEW * self.count >= self.dimension:
            self._fold()
        return self

    def merge(self, other: "SubspaceFitter") -> "SubspaceFitter":
        """Add all that another fitter has seen."""
        for group, (total, count) in other._groups.items():
            ours, seen = self._groups.get(group, (torch.zeros_like(total), 0))
            self._groups[group] = ours + total, seen + count
        self.count += other.count
        self._rows += other._rows
        if other._gram is not None:
            self._fold()
            self._gram += other._gram
        elif self._gram is not None or FEW * self.count >= self.dimension:
            self._fold()
        return self

    def fit(self) -> Subspace:
        """The subspace of all activations so far; ValueError if there were none."""
        if self.count == 0:
            raise ValueError("No activations were seen; give the set at least one sample.")
        means = torch.stack([total / count for total, count in self._groups.values()])
        if self._gram is not None:
            energies, basis = eigen(self._gram)
        else:
            rows = torch.cat(self._rows).double()
            energies, left = eigen(rows @ rows.T)
            kept = energies > NUMERICAL_RANK * energies[-1]
            energies = energies[kept]
            basis = rows.T @ left[:, kept] / energies.sqrt()
        order = energies.argsort(descending=True)
        order = order[energies[order] > NUMERICAL_RANK * energies.max()]
        return Subspace(basis[:, order], energies[order], means, self.count)

    def _fold(self) -> None:
        rows = torch.cat([torch.zeros(0, self.dimension), *self._rows]).double()
        if self._gram is None:
            self._gram = rows.T @ rows
        else:
            self._gram.addmm_(rows.T, rows)
        self._rows = []
