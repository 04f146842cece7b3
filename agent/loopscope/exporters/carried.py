"""What workers tell for a ``/metrics`` page that somebody else makes.

Families of a service's own prometheus_client registry are in no page of ours. Each worker has its
own, with figures that only the service knows how to add up; so they are published side by side,
told apart by a ``worker`` label. Timestamps and exemplars of theirs stay behind.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import Metric as PrometheusFamily
from prometheus_client.registry import Collector

from loopscope.core.page import Labels

Exemplar = tuple[float, float, int, int]
"""Observed value, Unix time, trace id, span id."""
Exemplars = Mapping[tuple[str, Labels, int], Exemplar]
"""The latest sampled trace by metric name, label values and bucket."""

Described = list[list[Any]]
"""Families, each as name, help, kind, unit and samples; these as name, labels and value."""


@dataclass(frozen=True, slots=True)
class Carried:
    """Exemplars of others, and by worker the families of the service's own."""

    exemplars: Exemplars = field(default_factory=dict[tuple[str, Labels, int], Exemplar])
    users: Collection[tuple[str, Described]] = ()


NOTHING = Carried()


def described(registry: Collector) -> Described:
    """All families in ``registry``, of JSON's types. Raises whatever its collectors raise."""
    return [
        [
            family.name,
            family.documentation,
            family.type,
            family.unit,
            [[each.name, dict(each.labels), float(each.value)] for each in family.samples],
        ]
        for family in registry.collect()
    ]


def newest(several: Iterable[Exemplars]) -> Exemplars:
    """All in one, of each bucket the one that was observed last."""
    found: dict[tuple[str, Labels, int], Exemplar] = {}
    for exemplars in several:
        for key, exemplar in exemplars.items():
            known = found.get(key)
            if known is None or known[1] < exemplar[1]:
                found[key] = exemplar
    return found


class SideBySide(Collector):
    """The families of several workers, each sample with its worker's number.

    Of what two workers call by one name and is not of one kind, the first one's is published.
    """

    def __init__(self, users: Iterable[tuple[str, Described]]) -> None:
        self._users = users

    def collect(self) -> Iterable[PrometheusFamily]:
        found: dict[str, PrometheusFamily] = {}
        for worker, families in self._users:
            for name, documentation, kind, unit, samples in families:
                made = PrometheusFamily(name, documentation, kind, unit)
                family = found.setdefault(name, made)
                if family.type == made.type:
                    for sample, labels, value in samples:
                        family.add_sample(sample, {**labels, "worker": worker}, value)
        return found.values()
