"""A Prometheus histogram as read from a scrape, and what can be said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Histogram:
    """Cumulative counts by upper bound, ``+Inf`` last, and the sum of the observed values."""

    cumulative: Mapping[float, float]
    total: float

    @property
    def count(self) -> float:
        """How many values were observed."""
        return self.cumulative.get(math.inf, 0.0)

    @property
    def mean(self) -> float:
        """The exact mean; not a number if nothing was observed."""
        return self.total / self.count if self.count else math.nan

    def __add__(self, other: Histogram) -> Histogram:
        """Both together; the bounds must be the same."""
        bounds = self.cumulative.keys() | other.cumulative.keys()
        cumulative = {
            bound: self.cumulative.get(bound, 0.0) + other.cumulative.get(bound, 0.0)
            for bound in sorted(bounds)
        }
        return Histogram(cumulative, self.total + other.total)

    def quantile(self, q: float) -> Estimate:
        """The ``q``-quantile as PromQL's ``histogram_quantile`` estimates it.

        Linear between the bounds of the bucket the quantile falls into, the lowest bucket
        starting at zero. A quantile in the ``+Inf`` bucket is only known to lie above the highest
        finite bound, one in the lowest bucket only to lie below its bound.
        """
        if not self.count:
            return Estimate(math.nan)
        rank = q * self.count
        bounds = sorted(self.cumulative)
        index = next(i for i, bound in enumerate(bounds) if self.cumulative[bound] >= rank)
        if math.isinf(bounds[index]):
            return Estimate(bounds[index - 1] if index else math.nan, above=True)
        return Estimate(self._between(bounds, index, rank), below=bounds[0] if index == 0 else None)

    def _between(self, bounds: list[float], index: int, rank: float) -> float:
        lower = bounds[index - 1] if index else 0.0
        before = self.cumulative[bounds[index - 1]] if index else 0.0
        inside = self.cumulative[bounds[index]] - before
        share = (rank - before) / inside if inside else 0.0
        return lower + (bounds[index] - lower) * share


@dataclass(frozen=True)
class Estimate:
    """An estimated quantile, and whether it is in truth only a bound.

    ``below`` is the bound of the lowest bucket if the quantile lies in it; ``above`` says that
    the quantile lies somewhere above ``value``.
    """

    value: float
    below: float | None = None
    above: bool = False


EMPTY = Histogram({math.inf: 0.0}, 0.0)
