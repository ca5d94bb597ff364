"""Activation subspaces from streamed second moments."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

NUMERICAL_RANK, TINY = 1e-10, 1e-300
AT_ONCE = 8192  # rows in float64


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [d], ascending, none negative, and eigenvectors [d, d] of a symmetric matrix."""
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        # It may fail on sound matrices with many equal eigenvalues, as inputs that are never active
        # make them; the singular vectors of such a matrix are its eigenvectors.
        vectors, values, _ = torch.linalg.svd(matrix)
        return values.flip(0), vectors.flip(1)


def gram(rows: Tensor) -> Tensor:
    """X^T X [d, d] of rows X [n, d], on the CPU, in half the products, as it is symmetric."""
    array = rows.detach().numpy()
    return torch.from_numpy(array.T @ array)  # of which NumPy has BLAS' syrk make one half


def sum_of_grams(parts: Iterable[Tensor]) -> Tensor:
    """The sum of X^T X [d, d] of all X, each made in the precision of its X, summed in float64."""
    total = torch.zeros(()).double()
    for part in parts:
        total = gram(part).double().add_(total)
    return total


@dataclass(frozen=True)
class Subspace:
    """The second moments of activations: `count` stacked ones X, or X^T X where those are fewer.

    `rows` [count, d] are empty where `gram` [d, d] is there; `means` [g, p, d] holds the mean of
    each group of activations at each position, if they have positions.
    """

    rows: Tensor
    gram: Tensor | None
    means: Tensor
    count: int

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor]:
        """Principal directions: orthonormal [d, k], and energies [k], descending.

        An energy is a squared singular value of the stacked activations.
        """
        if self.gram is not None:
            energies, basis = eigen(self.gram)
        else:
            energies, left = eigen(self.rows @ self.rows.T)
            kept = energies > NUMERICAL_RANK * energies[-1]
            energies = energies[kept]
            basis = self.rows.T @ left[:, kept] / energies.sqrt()
        order = energies.argsort(descending=True)
        order = order[energies[order] > NUMERICAL_RANK * energies.max()]
        return basis[:, order], energies[order]

    def scaled(self, alpha: float) -> tuple[Tensor, Tensor]:
        """Factors [d, k] and [k, d] of the projection U diag(alpha r / ((alpha - 1) r + 1)) U^T.

        U are the principal directions and r their shares of the energy (Kodge, Saha and Roy, 2023).
        That is alpha M ((alpha - 1) M + 1)^-1 with M = X^T X / |X|^2, which takes no decomposition.
        """
        if self.gram is not None:
            everything = torch.eye(len(self.gram)).double()
            return self.scale(everything, alpha), everything
        share, inner = self._inner(alpha)
        return alpha * share * self.rows.T, _solve_shifted(inner, self.rows)

    def scale(self, inputs: Tensor, alpha: float) -> Tensor:
        """The same projection of inputs [d, n]."""
        if self.gram is not None:
            moment = self.gram / self.gram.trace().clamp(min=TINY)
            return _solve_shifted((alpha - 1) * moment, alpha * (moment @ inputs))
        share, inner = self._inner(alpha)
        return alpha * share * (self.rows.T @ _solve_shifted(inner, self.rows @ inputs))

    def _inner(self, alpha: float) -> tuple[Tensor, Tensor]:
        """1 / |X|^2, and (alpha - 1) X X^T / |X|^2 [count, count]."""
        share = 1 / self.rows.square().sum().clamp(min=TINY)
        return share, (alpha - 1) * share * (self.rows @ self.rows.T)

    def moment(self) -> Tensor:
        """The second moments X^T X / n [d, d]."""
        return (gram(self.rows) if self.gram is None else self.gram) / self.count

    def energy(self, matrix: Tensor) -> Tensor:
        """The mean |A x|^2 of the activations x, for a matrix A [o, d]."""
        if self.gram is None:
            return (matrix @ self.rows.T.to(matrix)).square().sum() / self.count
        return (matrix @ self.gram.to(matrix) * matrix).sum() / self.count

    def moment_about(self, centre: Tensor) -> Tensor:
        """The second moments of X - centre [d, d]; groups must be of about one size."""
        cross = torch.outer(self.means.mean((0, 1)), centre)
        return self.moment() - cross - cross.T + torch.outer(centre, centre)

    def top_energy_basis(self, share: float) -> Tensor:
        """As few of the strongest directions [d, k] as hold this share of the energy; all for 1."""
        basis, energies = self.axes
        reached = energies.cumsum(0) / energies.sum()
        return basis[:, : int((reached < share).sum()) + 1]


def subspace_of(rows: Tensor) -> Subspace:
    """The subspace of rows [n, d] that belong to no group, in float64 whatever theirs is."""
    few, none = len(rows) < rows.shape[1], rows[:0].double()
    many = None if few else sum_of_grams(part.double() for part in rows.split(AT_ONCE))
    return Subspace(rows.double() if few else none, many, none[:, None], len(rows))


def _solve_shifted(matrix: Tensor, right: Tensor) -> Tensor:
    """(A + 1)^-1 B of a symmetric A whose eigenvalues lie above -1."""
    shifted = matrix + torch.eye(len(matrix), dtype=matrix.dtype)
    return torch.cholesky_solve(right, torch.linalg.cholesky(shifted))


class SubspaceFitter:
    """Sees activations batch by batch and keeps not much more than d x d numbers of them.

    While samples are fewer than dimensions they are kept themselves, since their own n x n problem
    is then the smaller one; from there on the second moments X^T X are, to which as many are added
    at a time.
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
        for part in placed.split(max(1, AT_ONCE // placed.shape[1])):
            total = total + part.sum(0, dtype=torch.float64)
            self._rows.append(part.flatten(0, 1).clone())  # a view would hold all of them
            self._fold_many()
        self._groups[group] = total, count + len(placed)
        self.count += placed.shape[:2].numel()
        return self

    def merge(self, other: "SubspaceFitter") -> "SubspaceFitter":
        """Add all that another fitter has seen."""
        for group, (total, count) in other._groups.items():
            ours, seen = self._groups.get(group, (torch.zeros_like(total), 0))
            self._groups[group] = ours + total, seen + count
        self.count += other.count
        self._rows += other._rows
        if other._gram is not None:
            self._fold().add_(other._gram)
        self._fold_many()
        return self

    def fit(self) -> Subspace:
        """The subspace of all activations so far; ValueError if there were none."""
        if self.count == 0:
            raise ValueError("No activations were seen; give the set at least one sample.")
        means = torch.stack([total / count for total, count in self._groups.values()])
        if self._gram is not None:
            self._fold()
        empty = torch.empty(0, self.dimension)
        rows = torch.cat([empty, *self._rows]).double()
        return Subspace(rows, self._gram, means, self.count)

    def _fold_many(self) -> None:
        if sum(map(len, self._rows)) >= self.dimension:
            self._fold()

    def _fold(self) -> Tensor:
        """The second moments, all samples taken into them."""
        if self._gram is None:
            self._gram = torch.zeros(self.dimension, self.dimension).double()
        if self._rows:
            self._gram += gram(torch.cat(self._rows).double())
        self._rows = []
        return self._gram
