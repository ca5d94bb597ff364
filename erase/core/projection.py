"""Projections that tell a forget space from a retain space, and the weight edits they make."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erase.core.subspace import Subspace

OBLIQUE_RIDGE, CONTRAST_RIDGE = 1e-6, 1e-4
ROUNDING = 1e-5


@dataclass(frozen=True)
class Projection:
    """The factored matrix P = left @ right [d, d] whose part of the input a weight is to lose."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The inner dimension of the factors."""
        return len(self.right)

    def edit(self, weight: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Factors (up [out, k], down [k, d]) of the change that makes W (I - strength P)^T of W.

        A strength of 2 reflects what 1 removes. Convolutions are flattened to [out, d].
        """
        wide = weight.detach().cpu().double().flatten(1)
        return -strength * wide @ self.right.T, self.left.T

    def truncated(self, rank: int) -> "Projection":
        """The nearest matrix of at most this rank."""
        if self.rank <= rank:
            return self
        outer, triangle = torch.linalg.qr(self.left)
        left, singular, right = torch.linalg.svd(triangle @ self.right, full_matrices=False)
        return Projection(outer @ left[:, :rank] * singular[:rank], right[:rank])


def discriminative(
    forget: Subspace, retain: Subspace, forget_alpha: float, retain_alpha: float
) -> Projection:
    """P_f - P_f P_r with scaled projections: what is the forget space's alone.

    Source: Kodge, Saha and Roy (2023).
    """
    right = forget.basis.T
    kept = (right @ retain.basis) * retain.scaled(retain_alpha)
    left = forget.basis * forget.scaled(forget_alpha)
    return Projection(left, right - kept @ retain.basis.T)


def orthogonal(
    directions: Tensor, rank: int | None = None, smallest: Tensor | float | None = None
) -> Projection:
    """The orthogonal projection onto the strongest `rank` axes of directions [d, k], or onto all.

    Axes up to `smallest` long count as rounding noise; by default 1e-5 of the longest.
    """
    left, singular, _ = torch.linalg.svd(directions.cpu().double(), full_matrices=False)
    smallest = ROUNDING * singular.max() if smallest is None else smallest
    basis = left[:, singular > smallest][:, :rank]
    return Projection(basis, basis.T)


def null_space(forget: Subspace, retain: Subspace, rank: int) -> Projection:
    """The projection onto the `rank` strongest axes of the forget space cleared of the retain one.

    Inputs within the retain space are mapped to themselves exactly. Axes shorter than rounding
    noise beside the forget space do not count, so that the rank may be 0.
    """
    axes = forget.basis * forget.energies.sqrt()
    cleared = axes - retain.basis @ (retain.basis.T @ axes)
    return orthogonal(cleared, rank, ROUNDING * axes.norm())


def mean_difference(forget: Subspace, retain: Subspace) -> Projection:
    """The orthogonal projection onto what tells each forget group's mean from the retain mean."""
    smallest = ROUNDING * torch.cat([forget.means, retain.means]).norm()
    return orthogonal(_mean_differences(forget, retain), smallest=smallest)


def oblique(forget: Subspace, retain: Subspace) -> Projection:
    """The projection along the differences of means that moves the inputs least.

    P = D (D^T M^-1 D)^-1 D^T M^-1 with D the differences and M both sets' second moments: of all P
    with P D = D it has the smallest expected |P x|^2. Source: LEACE (Belrose et al., NeurIPS 2023),
    without its bias, which keys and values have nowhere to put.
    """
    differences = _mean_differences(forget, retain)
    moment = forget.moment() + retain.moment()
    ridge = OBLIQUE_RIDGE * moment.diagonal().mean() * torch.eye(len(moment)).double()
    whitened = torch.linalg.solve(moment + ridge, differences)
    return Projection(differences, torch.linalg.solve(whitened.T @ differences, whitened.T))


def contrast(forget: Subspace, retain: Subspace, rank: int, least: float) -> Projection:
    """The projection that takes what tells forget inputs from retained ones, out of both.

    With F and R the second moments of either, the columns of W are the functionals w of largest
    (w^T F w) / (w^T R w), at most `rank` of them, each above `least`; P = F W (W^T F W)^-1 W^T. So
    (I - P) x is the residual of regressing forget inputs on W^T x, W^T (I - P) is 0, and what
    retained inputs lose is small as their W^T x is (Fukunaga and Koontz, 1970).
    """
    wanted, kept = forget.moment(), retain.moment()
    ridge = CONTRAST_RIDGE * kept.diagonal().mean() * torch.eye(len(kept)).double()
    unmix = torch.linalg.inv(torch.linalg.cholesky(kept + ridge))
    quotients, vectors = torch.linalg.eigh(unmix @ wanted @ unmix.T)
    best = quotients.argsort(descending=True)[:rank]
    functionals = unmix.T @ vectors[:, best[quotients[best] > least]]
    carried = wanted @ functionals
    left = torch.linalg.solve(functionals.T @ carried, carried.T).T
    return Projection(left, functionals.T)


def _mean_differences(forget: Subspace, retain: Subspace) -> Tensor:
    """One column a forget group: [d, g]."""
    return (forget.means - retain.means.mean(0)).T
