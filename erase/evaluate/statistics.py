"""Shares with their interval, means with their error."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from scipy.stats import binomtest
from torch import Tensor

from erase.evaluate.reports import Figure


def wilson_share(hits: Sequence[bool]) -> Figure:
    """The share of hits with its 95 % Wilson interval, all rounded to four places."""
    count, n = sum(hits), len(hits)
    low, high = map(float, binomtest(count, n).proportion_ci(0.95, "wilson"))
    return Figure(round(count / n, 4), n, interval=(round(low, 4), round(high, 4)))


def mean_with_error(values: Tensor) -> dict[str, Any]:
    """The mean of values [n] with its standard error, if they are two or more."""
    error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else None
    return {"value": float(values.mean()), "standard_error": error, "n": len(values)}


def area_under(curve: Mapping[int, float]) -> float:
    """The mean height of the line through the values at rising steps, two or more, to 4 places."""
    points = [(int(step), value) for step, value in curve.items()]  # JSON's are texts
    area = sum((b - a) * (low + high) / 2 for (a, low), (b, high) in pairwise(points))
    return round(area / (points[-1][0] - points[0][0]), 4)
