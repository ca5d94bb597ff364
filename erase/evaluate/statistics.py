"""Shares with their interval."""

from collections.abc import Sequence

from scipy.stats import binomtest

from erase.evaluate.reports import Figure


def wilson_share(hits: Sequence[bool]) -> Figure:
    """The share of hits with its 95 % Wilson interval, all rounded to four places."""
    count, n = sum(hits), len(hits)
    low, high = map(float, binomtest(count, n).proportion_ci(0.95, "wilson"))
    return Figure(round(count / n, 4), n, interval=(round(low, 4), round(high, 4)))
