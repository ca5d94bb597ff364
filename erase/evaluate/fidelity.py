"""Distances between two sets of pictures on any features: Fréchet and kernel distance."""

from dataclasses import dataclass

import torch
from torch import Tensor

SUBSETS, BOOTSTRAPS = 100, 50


@dataclass(frozen=True)
class Distance:
    """A distance with its 95 % interval and the number of pictures of either set."""

    value: float
    interval: tuple[float, float]
    n: tuple[int, int]


def frechet(one: Tensor, other: Tensor) -> float:
    """Fréchet distance of Gaussians fitted to features [n, d] (FID; Heusel et al., NeurIPS 2017).

    The value depends on n and on whose features they are; state both beside it.
    """
    first, second = one.double(), other.double()
    means = (first.mean(0) - second.mean(0)).square().sum()
    covariance, target = first.T.cov(), second.T.cov()
    root = _root(covariance)
    cross = torch.linalg.eigvalsh(root @ target @ root).clamp_min(0).sqrt().sum()
    return float(means + covariance.trace() + target.trace() - 2 * cross)


def frechet_distance(one: Tensor, other: Tensor, seed: int = 0) -> Distance:
    """`frechet` with a bootstrap interval, which lies rather high: resampled sets vary more."""
    generator = torch.Generator().manual_seed(seed)

    def resampled(features: Tensor) -> Tensor:
        return features[torch.randint(len(features), (len(features),), generator=generator)]

    values = [frechet(resampled(one), resampled(other)) for _ in range(BOOTSTRAPS)]
    return Distance(frechet(one, other), _percentiles(values), (len(one), len(other)))


def kernel(one: Tensor, other: Tensor) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 (KID; Binkowski et al., ICLR 2018)."""
    first, second = one.double(), other.double()
    n, m, d = len(first), len(second), first.shape[1]

    def kernel_sum(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / d + 1) ** 3

    within, without = kernel_sum(first, first), kernel_sum(second, second)
    within = (within.sum() - within.trace()) / (n * (n - 1))
    without = (without.sum() - without.trace()) / (m * (m - 1))
    return float(within + without - 2 * kernel_sum(first, second).mean())


def kernel_distance(one: Tensor, other: Tensor, subset: int = 50, seed: int = 0) -> Distance:
    """`kernel` of all features, its interval from random subsets of this size.

    Raises ValueError if either set is smaller than a subset.
    """
    if min(len(one), len(other)) < subset:
        raise ValueError(
            f"The sets have {len(one)} and {len(other)} pictures, fewer than the subset of "
            f"{subset}; draw more or lower it."
        )
    generator = torch.Generator().manual_seed(seed)

    def some(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=generator)[:subset]]

    values = [kernel(some(one), some(other)) for _ in range(SUBSETS)]
    return Distance(kernel(one, other), _percentiles(values), (len(one), len(other)))


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp_min(0).sqrt() @ vectors.T


def _percentiles(values: list[float]) -> tuple[float, float]:
    low, high = torch.tensor(values).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high
