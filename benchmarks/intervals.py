"""Intervals over seeds."""

import math
from collections.abc import Sequence

import torch
from scipy.stats import t


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the 95 % t-interval over seeds; infinite for a single one."""
    numbers = torch.tensor(list(values), dtype=torch.float64)
    if len(numbers) < 2:
        return float(numbers.mean()), math.inf
    half = t.ppf(0.975, len(numbers) - 1) * float(numbers.std()) / len(numbers) ** 0.5
    return float(numbers.mean()), float(half)
