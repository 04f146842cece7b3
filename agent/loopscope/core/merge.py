"""Pages in, families out: the same series from several writers becomes one.

Counters, histograms and ordinary gauges are added up. Gauges that mean something per worker only
(``Metric.per_worker``) keep apart by a ``worker`` label, as soon as there may be several workers.
Of what all workers share (``Metric.is_shared``), or have to themselves up to a limit
(``Metric.fullest``), the largest value counts: five workers that see one queue of seven do not see
35. Gauges whose name begins with an underscore are what pages tell those who know to ask; they are
in no family.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from loopscope.core.metric import Metric
from loopscope.core.page import Labels, PageReader, Series

_BREATHE_EVERY = 128

Raw = tuple[bytes, ...]
"""A series' slots as they stand in each page that has it: equal bytes, equal values."""


@dataclass(frozen=True, slots=True)
class ReadPage:
    """A page that has just been read. ``worker`` is empty where there can be only one.

    Of a worker that is not ``alive`` the counts stand, but not its gauges. ``closed``: it has
    ended in good order.
    """

    reader: PageReader
    buffer: bytes | memoryview
    worker: str = ""
    alive: bool = True
    closed: bool = False


@dataclass(slots=True)
class Family:
    """All series of one metric. ``label_names`` may end in ``worker``."""

    metric: Metric
    label_names: tuple[str, ...]
    rows: dict[Labels, Raw] = field(default_factory=dict[Labels, Raw])

    def put(self, labels: Labels, values: Sequence[float]) -> None:
        """Add a row that no page has."""
        self.rows[labels] = (struct.pack(f"={len(values)}d", *values),)

    def values(self, raw: Raw) -> list[float]:
        """The slots of one row, added up over its writers: ``metric.slot_count`` numbers."""
        if self.metric.kind == "counter":
            return [sum(map(sum, map(_numbers, raw)))]
        if len(raw) == 1:
            return list(_numbers(raw[0]))
        return [sum(column) for column in zip(*map(_numbers, raw), strict=True)]


def merge(
    pages: Iterable[ReadPage],
    breathe: Callable[[], None] = lambda: None,
    *,
    every_shape: bool = False,
) -> list[Family]:
    """All families of ``pages``, in order of first appearance.

    What another version of the service or of loopscope calls by the same name but cannot be added
    up, having other labels or bounds, is left out; with ``every_shape`` it is a family of its own.
    ``breathe`` is called every few series: a place to let other threads run.
    """
    families: dict[object, Family] = {}
    for page in pages:
        buffer = page.buffer
        for number, series in enumerate(page.reader.series):
            if number % _BREATHE_EVERY == 0:
                breathe()
            metric = series.metric
            labels = series.labels
            if metric.kind == "gauge" and (metric.name[0] == "_" or not page.alive):
                continue
            apart = metric.per_worker and page.worker
            family = families.get(metric.name)
            if family is None:
                names = (*metric.labels, "worker") if apart else metric.labels
                family = families[metric.name] = Family(metric, names)
            elif family.metric is not metric and _shape(family.metric) != _shape(metric):
                if not every_shape:
                    continue
                family = families.setdefault(_shape(metric), Family(metric, metric.labels))
            if apart:
                labels = (*labels, page.worker)
            raw = series.raw(buffer)
            known = family.rows.get(labels)
            family.rows[labels] = (raw,) if known is None else _together(series, known, raw)
    return list(families.values())


def _shape(metric: Metric) -> object:
    """What two metrics have in common whose slots can be added up."""
    return (metric.name, metric.kind, metric.labels, metric.bounds)


def _together(series: Series, known: Raw, raw: bytes) -> Raw:
    """What a row that is ``known`` becomes with one more writer's ``raw``."""
    metric = series.metric
    if metric.is_shared or (metric.fullest and series.labels[-1] in metric.fullest):
        return max(known, (raw,), key=lambda each: _numbers(each[0]))
    return (*known, raw)


def _numbers(slots: bytes) -> tuple[float, ...]:
    return struct.unpack(f"={len(slots) // 8}d", slots)
