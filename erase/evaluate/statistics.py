"""Shares with their interval, means with their error."""

from collections.abc import Sequence
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
