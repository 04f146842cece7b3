"""What was published against what was to be: exactly, or within bounds where none can know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from _exact_kinds import SAMPLES, Sample, amounts, sample


@dataclass(frozen=True)
class Line:
    """One sample: what it is, and the least and the most it may be."""

    sample: Sample
    published: float
    least: float
    most: float

    @property
    def holds(self) -> bool:
        """Whether it is within its bounds."""
        return self.least <= self.published <= self.most

    @property
    def is_exact(self) -> bool:
        """Whether there is only one value it may have."""
        return self.least == self.most


def compare(
    published: Counter[Sample], recorded: Iterable[int], unknowable: Iterable[int]
) -> list[Line]:
    """Every sample there is or should be, in order.

    `recorded` are the requests that must be in it, `unknowable` those that may be.
    """
    least = amounts(recorded)
    most = least + amounts(unknowable)
    return [
        Line(each, published[each], least[each], most[each]) for each in sorted({*published, *most})
    ]


def read(exposition: str, leaving_out: str) -> Counter[Sample]:
    """All samples that are compared, but for those of one route, and none that are zero."""
    found: Counter[Sample] = Counter()
    for family in text_string_to_metric_families(exposition):
        for each in family.samples:
            if each.name in SAMPLES and each.labels["http_route"] != leaving_out and each.value:
                found[sample(each.name, each.labels)] += each.value  # type: ignore[assignment]
    return found


def shrunk(before: Counter[Sample], now: Counter[Sample]) -> list[Sample]:
    """The samples that are less than they were: there must not be any."""
    return [each for each, value in before.items() if now[each] < value]
