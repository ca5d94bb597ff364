"""Distances between two sets of pictures on any features: Fréchet and kernel distance.

Both need all features at once, 4 bytes a number; no matrix grows with the square of their count.
"""

import torch
from torch import Tensor

from erase.core.seeds import seeded
from erase.evaluate.reports import Distance

BOOTSTRAPS = 50
ROWS = 256  # of a kernel, in memory


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features [n, d] (FID; Heusel et al., NeurIPS 2017).

    The value depends on n and on whose features they are; state both beside it.
    """
    first, second = one.double(), other.double()
    means = (first.mean(0) - second.mean(0)).square().sum()
    covariance, target = first.T.cov(), second.T.cov()
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ target @ root).clamp_min(0).sqrt().sum()
    return float(means + covariance.trace() + target.trace() - 2 * cross)


def require_enough(one: int, other: int) -> None:
    """Raise ValueError if sets of so many pictures have no distance."""
    if min(one, other) < 3:
        raise ValueError(f"The sets have {one} and {other} pictures; draw at least 3.")


def frechet_distance(one: Tensor, other: Tensor) -> Distance:
    """`frechet` with a basic bootstrap interval, which mirrors resamples' excess of variance.

    Raises ValueError if either set has fewer than 3 pictures.
    """
    require_enough(len(one), len(other))
    generator = seeded(0)

    def resampled(features: Tensor) -> Tensor:
        return features[torch.randint(len(features), (len(features),), generator=generator)]

    value = frechet(one, other)
    values = torch.tensor([frechet(resampled(one), resampled(other)) for _ in range(BOOTSTRAPS)])
    low, high = values.quantile(torch.tensor([0.025, 0.975])).tolist()
    return Distance(value, (2 * value - high, 2 * value - low), (len(one), len(other)))


def kernel(one: Tensor, other: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 (KID; Binkowski et al., ICLR 2018)."""
    first, second = one.double(), other.double()
    n, m = len(first), len(second)
    within = _among(first).sum() / (n * (n - 1))
    without = _among(second).sum() / (m * (m - 1))
    return float(within + without - 2 * _sums(first, second).sum() / (n * m))


def _sums(one: Tensor, other: Tensor) -> Tensor:
    """Over the second set, of its kernel with each of the first [n]; some rows at a time."""
    rows = one.split(ROWS)
    return torch.cat([((part @ other.T / one.shape[1] + 1) ** 3).sum(1) for part in rows])


def _among(features: Tensor) -> Tensor:
    """The kernel's sums over all others of the same set [n]."""
    own = (features.square().sum(1) / features.shape[1] + 1) ** 3
    return _sums(features, features) - own


def kernel_distance(one: Tensor, other: Tensor) -> Distance:
    """`kernel` with the normal interval of a jackknife over the pictures of both sets.

    Raises ValueError if either set has fewer than 3 pictures.
    """
    require_enough(len(one), len(other))
    value = kernel(one, other)
    variance = sum(
        (len(left_out) - 1) * left_out.var(correction=0)
        for left_out in (_without_each(one, other), _without_each(other, one))
    )
    half = 1.96 * float(variance) ** 0.5
    return Distance(value, (value - half, value + half), (len(one), len(other)))


def _without_each(one: Tensor, other: Tensor) -> Tensor:
    """`kernel` without each sample of the first set in turn [n]."""
    first, second = one.double(), other.double()
    n, m = len(first), len(second)
    own, across = _among(first), _sums(first, second)
    rest = (own.sum() - 2 * own) / ((n - 1) * (n - 2))
    between = (across.sum() - across) / ((n - 1) * m)
    return rest + _among(second).sum() / (m * (m - 1)) - 2 * between
