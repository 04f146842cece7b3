"""Scrapes of ``/metrics`` and the difference between two: the samples of one window. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from demo_app.histogram import Histogram

Labels = frozenset[tuple[str, str]]
Key = tuple[str, ...]


class RestartedError(Exception):
    """The process behind the two scrapes is not the same: their difference says nothing."""


@dataclass(frozen=True)
class Scrape:
    """Every sample of one exposition: sample name, then labels, then value."""

    at: float
    samples: Mapping[str, Mapping[Labels, float]]

    def total(self, name: str) -> float:
        """The sum over all series of a sample name; 0 if there is none."""
        return sum(self.samples.get(name, {}).values())


def parse(text: str, at: float) -> Scrape:
    """A scrape taken ``at`` (monotonic seconds) in Prometheus' text format."""
    samples: defaultdict[str, dict[Labels, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            samples[sample.name][frozenset(sample.labels.items())] = sample.value
    return Scrape(at, dict(samples))


@dataclass(frozen=True)
class Window:
    """How much every counter and histogram grew from one scrape to a later one."""

    seconds: float
    growth: Mapping[str, Mapping[Labels, float]]
    latest: Mapping[str, Mapping[Labels, float]]
    """What stands at its end, for gauges."""

    def sums(self, name: str, *by: str) -> dict[Key, float]:
        """The growth of a sample name, summed by the values of the labels ``by``."""
        return _sums(self.growth.get(name, {}), by)

    def values(self, name: str, *by: str) -> dict[Key, float]:
        """The gauge of a sample name at the end, summed by the values of the labels ``by``."""
        return _sums(self.latest.get(name, {}), by)

    def total(self, name: str) -> float:
        """The growth of a sample name over all its series; 0 if it has none."""
        return sum(self.growth.get(name, {}).values())

    def histograms(self, name: str, *by: str) -> dict[Key, Histogram]:
        """The histograms of a metric, merged by the values of the labels ``by``."""
        buckets: defaultdict[Key, defaultdict[float, float]] = defaultdict(_zeros)
        for labels, value in self._series(f"{name}_bucket"):
            buckets[_key(labels, by)][float(labels["le"])] += value
        totals = self.sums(f"{name}_sum", *by)
        return {
            key: Histogram(dict(sorted(cumulative.items())), totals.get(key, 0.0))
            for key, cumulative in buckets.items()
            if cumulative[math.inf]
        }

    def _series(self, name: str) -> Iterator[tuple[dict[str, str], float]]:
        for labels, value in self.growth.get(name, {}).items():
            yield dict(labels), value


def between(earlier: Scrape, later: Scrape) -> Window:
    """What happened from ``earlier`` to ``later``; a series that is new started at zero.

    Raises ``RestartedError`` if the process has been replaced meanwhile.
    """
    born = "process_start_time_seconds"
    if earlier.total(born) != later.total(born):
        raise RestartedError("the service was restarted between the two scrapes")
    growth = {
        name: {
            labels: value - earlier.samples.get(name, {}).get(labels, 0.0)
            for labels, value in series.items()
        }
        for name, series in later.samples.items()
    }
    return Window(later.at - earlier.at, growth, later.samples)


def _sums(series: Mapping[Labels, float], by: tuple[str, ...]) -> dict[Key, float]:
    sums: defaultdict[Key, float] = defaultdict(float)
    for labels, value in series.items():
        sums[_key(dict(labels), by)] += value
    return dict(sums)


def _key(labels: Mapping[str, str], by: tuple[str, ...]) -> Key:
    return tuple(labels.get(label, "") for label in by)


def _zeros() -> defaultdict[float, float]:
    return defaultdict(float)
