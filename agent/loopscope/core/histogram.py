"""Histograms and single numbers over slots of a page.

The request hot path writes its slots itself, inline; these are the same few additions as objects,
for everything that happens less often.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from itertools import repeat


class Histogram:
    """Counts observations in ``len(bounds) + 1`` buckets followed by their sum.

    ``slots`` is any mutable float64 buffer and ``base`` the index of the first bucket. A value
    equal to a bound falls into that bound's bucket, as Prometheus' ``le`` demands. Single writer:
    only one thread at a time may observe.
    """

    __slots__ = ("_base", "_bounds", "_slots", "_sum")

    def __init__(self, slots: memoryview[float], base: int, bounds: Sequence[float]) -> None:
        self._slots = slots
        self._base = base
        self._bounds = tuple(bounds)
        self._sum = base + len(self._bounds) + 1

    def observe(self, value: float) -> None:
        """Count ``value``, in the metric's base unit."""
        slots = self._slots
        slots[self._base + bisect_left(self._bounds, value)] += 1.0
        slots[self._sum] += value

    def observe_all(self, values: Sequence[float]) -> None:
        """Count each of ``values``: no more than one addition a bucket, however many they are."""
        slots, base = self._slots, self._base
        buckets = Counter(map(bisect_left, repeat(self._bounds), values))
        for bucket, count in buckets.items():
            slots[base + bucket] += count
        slots[self._sum] += sum(values)


class Number:
    """One slot: a counter to ``add`` to, or a gauge to ``set``. Single writer."""

    __slots__ = ("_index", "_slots")

    def __init__(self, slots: memoryview[float], index: int) -> None:
        self._slots = slots
        self._index = index

    @property
    def value(self) -> float:
        return float(self._slots[self._index])

    def add(self, amount: float = 1.0) -> None:
        self._slots[self._index] += amount

    def set(self, value: float) -> None:
        self._slots[self._index] = value


def cumulate(buckets: Sequence[float]) -> list[float]:
    """Each bucket's count together with all below it: what Prometheus publishes as ``le``."""
    total = 0.0
    return [total := total + count for count in buckets]
