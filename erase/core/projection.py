"""Projections that tell a forget space from a retain space, and the weight edits they make."""

from dataclasses import dataclass

import torch
from torch import Tensor

from erase.core.subspace import Subspace, eigen

RIDGE = 1e-3  # of the mean energy
LEACE_RIDGE = 1e-9  # for directions that no input has, of which LEACE takes the pseudo-inverse
ROUNDING = 1e-5
ROWS_AT_ONCE = 64  # of a weight, in float64


@dataclass(frozen=True)
class Projection:
    """P = left [d, k] @ right [k, d]: of an input x [d] a weight is to lose P x."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The inner dimension of the factors."""
        return len(self.right)

    def edit(self, weight: Tensor, strength: float = 1.0) -> tuple[Tensor, Tensor]:
        """Factors (up [out, k], down [k, d]) of the change that makes W (I - strength P) of W.

        A strength of 2 reflects what 1 removes. Convolutions are flattened to [out, d].
        """
        rows = weight.detach().cpu().flatten(1).split(ROWS_AT_ONCE)
        return -strength * torch.cat([part.double() @ self.left for part in rows]), self.right

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
    """The transpose of P_f - P_f P_r with scaled projections: what is the forget space's alone.

    So W becomes W (I - P_f + P_f P_r)^T. Source: Kodge, Saha and Roy (2023).
    """
    left, right = forget.scaled(forget_alpha)
    return Projection(left - retain.scale(left, retain_alpha), right)


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


def null_space(forget: Subspace, retain: Tensor, rank: int) -> Projection:
    """The projection onto the `rank` strongest axes of the forget space cleared of retained ones.

    Inputs within the span of the orthonormal `retain` [d, k] are mapped to themselves exactly. Axes
    shorter than rounding noise beside the forget space do not count, so that the rank may be 0.
    """
    basis, energies = forget.axes
    axes = basis * energies.sqrt()
    cleared = axes - retain @ (retain.T @ axes)
    return orthogonal(cleared, rank, ROUNDING * axes.norm())


def mean_difference(forget: Subspace, retain: Subspace, rank: int) -> Projection:
    """The orthogonal projection onto what tells each forget group's means from the retained ones.

    Of every group the `rank` main axes over its positions; one, if it has no positions.
    """
    smallest = ROUNDING * torch.cat([forget.means.flatten(0, 1), retain.means.flatten(0, 1)]).norm()
    axes = [
        orthogonal((means - retain.means.mean(0)).T, rank, smallest).left for means in forget.means
    ]
    return orthogonal(torch.cat(axes, 1), smallest=ROUNDING)


def oblique(forget: Subspace, retain: Subspace, rank: int) -> Projection:
    """The projection along the same axes that moves retained inputs least.

    P = D (D^T R^-1 D)^-1 D^T R^-1 with D the axes and R the retain set's second moments: of all P
    with P D = D it has the smallest expected |P x|^2 of retained x. The form is LEACE's, the metric
    R is not, nor are several axes over the positions. Only x - P x keeps LEACE's theorem, that no
    linear probe tells the sets apart; x - s P x with another strength s does not.
    """
    return _along(mean_difference(forget, retain, rank).left, _ridged(retain.moment()))


def leace(forget: Subspace, retain: Subspace) -> Projection:
    """LEACE's projection (Belrose et al., NeurIPS 2023, theorem 4.3): one axis a forget group.

    P = D (D^T S^-1 D)^-1 D^T S^-1 with D what tells each group's mean from the retained one, over
    all positions, and S the covariance within the two sets, which gives the P of LEACE's total one.
    What is left of the sets has one mean, so no linear probe beats a constant. LEACE's constant,
    P times the overall mean, is left out, since keys and values have nowhere to put it.
    """
    middle = retain.means.mean((0, 1))
    smallest = ROUNDING * torch.stack([*forget.means.mean(1), middle]).norm()
    axes = orthogonal((forget.means.mean(1) - middle).T, smallest=smallest).left
    scatters = (
        part.count * part.moment_about(part.means.mean((0, 1))) for part in (forget, retain)
    )
    covariance = sum(scatters, torch.zeros(())) / (forget.count + retain.count)
    return _along(axes, _ridged(covariance, LEACE_RIDGE))


def _along(axes: Tensor, moments: Tensor) -> Projection:
    """The projection onto axes [d, k] that moves inputs of these second moments [d, d] least."""
    whitened = torch.linalg.solve(moments, axes)
    return Projection(axes, torch.linalg.solve(whitened.T @ axes, whitened.T))


def contrastive(forget: Subspace, retain: Subspace, rank: int) -> Projection:
    """The projection that takes out the `rank` readings in which forgotten inputs stand out most.

    A reading v^T x stands out by the forget set's energy about the retained mean over the retain
    set's energy R, a generalized Rayleigh quotient. With V^T R V = I, P x = R V V^T x is the best
    linear guess of a retained x from its readings, and what is left of x has none.
    """
    retained = _ridged(retain.moment())
    root = torch.linalg.cholesky(retained)
    about = forget.moment_about(retain.means.mean((0, 1)))
    half = torch.linalg.solve_triangular(root, about, upper=False)
    whitened = torch.linalg.solve_triangular(root, half.T, upper=False)
    vectors = eigen((whitened + whitened.T) / 2)[1][:, -rank:].flip(1)
    readings = torch.linalg.solve_triangular(root.T, vectors, upper=True)
    return Projection(retained @ readings, readings.T)


def _ridged(moment: Tensor, share: float = RIDGE) -> Tensor:
    ridge = share * moment.diagonal().mean()
    return moment + ridge * torch.eye(len(moment)).double()
