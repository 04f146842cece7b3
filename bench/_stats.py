"""Medians, spreads and paired differences: everything the tables say about a list of numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """What a list of measurements looks like, in the unit of the measurements."""

    median: float
    q1: float
    q3: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise `values`; raises `ValueError` when there are none."""
        if not values:
            raise ValueError("no measurements to summarise: run at least one round")
        return cls(
            median=statistics.median(values),
            q1=quantile(values, 0.25),
            q3=quantile(values, 0.75),
            low=min(values),
            high=max(values),
        )


def quantile(values: Sequence[float], q: float) -> float:
    """The `q`-quantile (0 to 1) of `values`, interpolated linearly between neighbours."""
    ordered = sorted(values)
    position = q * (len(ordered) - 1)
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def differences(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """`values[i] - base[i]`: a pair was measured side by side, so shared noise cancels."""
    return [value - reference for value, reference in zip(values, base, strict=True)]


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """`values[i] / base[i]` of each pair measured side by side."""
    return [value / reference for value, reference in zip(values, base, strict=True)]


def middle_interval(values: Sequence[float]) -> tuple[float, float]:
    """A range that holds the true median in about 95 of 100 runs, whatever the distribution.

    Order statistics of the sign test (Conover, Practical Nonparametric Statistics, 3.2), with the
    normal approximation of the binomial; the whole range when there are fewer than six values.
    """
    ordered = sorted(values)
    skip = int(len(ordered) / 2 - 0.98 * len(ordered) ** 0.5)
    skip = max(0, min(skip, (len(ordered) - 1) // 2))
    return ordered[skip], ordered[-1 - skip]


def wilson(hits: int, of: int) -> tuple[float, float]:
    """Where a rate lies with 95 % certainty, if `hits` of `of` trials were hits (Wilson, 1927)."""
    if not of:
        return 0.0, 1.0
    z, share = 1.96, hits / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    reach = z / (1 + z * z / of) * ((share * (1 - share) + z * z / (4 * of)) / of) ** 0.5
    return max(0.0, middle - reach), min(1.0, middle + reach)


def poisson_limit(count: int) -> float:
    """The mean above which `count` events or fewer would come in less than 5 % of the cases.

    The one-sided exact limit (Garwood, 1936): about 3 for none, 4.7 for one.
    """
    low, high = 0.0, 3.0 * count + 10.0
    for _ in range(60):
        mean = (low + high) / 2
        term = total = math.exp(-mean)
        for number in range(1, count + 1):
            term *= mean / number
            total += term
        low, high = (mean, high) if total > 0.05 else (low, mean)
    return low
