"""Several workers' pages become one: what is added up, and what is not."""

from __future__ import annotations

import pytest

from loopscope.core.clock import Clock
from loopscope.core.merge import ReadPage, merge
from loopscope.core.metric import Metric
from loopscope.core.page import Labels, Page, PageReader

IN_USE = Metric("in_use", "gauge", "In use.", ("pool", "kind"), fullest=("listener",))


def worker(values: dict[Labels, float], metric: Metric = IN_USE) -> ReadPage:
    page = Page.anonymous(Clock(), capacity=1 << 16)
    for labels, value in values.items():
        page.slots[page.allocate(metric, labels)] = value
    reader = PageReader()
    reader.update(page.view)
    return ReadPage(reader, page.view, "1")


def merged(*pages: ReadPage) -> dict[Labels, float]:
    (family,) = merge(pages)
    return {labels: family.values(raw)[0] for labels, raw in family.rows.items()}


def test_a_queue_that_all_workers_share_is_counted_once() -> None:
    """Gauges are added up; of those that are told by their last label, the largest counts."""
    queue, connections = (":80", "listener"), ("db", "db.asyncpg")
    pages = [worker({queue: n, connections: n}) for n in (7.0, 8.0, 5.0)]
    assert merged(*pages) == {queue: 8, connections: 20}


def test_another_label_of_that_value_changes_nothing() -> None:
    """A pool may be called what it likes."""
    pool = ("listener", "db.asyncpg")
    assert merged(worker({pool: 2.0}), worker({pool: 3.0})) == {pool: 5}


def test_what_all_workers_read_at_one_place_is_not_added_up() -> None:
    """Four workers of a group of which the quota was used up twice do not make that eight."""
    throttled = Metric("throttled_total", "counter", "Throttled.", is_shared=True)
    pages = [worker({(): times}, throttled) for times in (2.0, 3.0, 2.0)]
    assert merged(*pages) == {(): 3.0}


def test_only_counters_are_shared() -> None:
    """A gauge that all workers share says so by its label."""
    with pytest.raises(ValueError, match="only counters"):
        Metric("throttled", "gauge", "Throttled.", is_shared=True)


def test_only_a_gauge_with_labels_can_be_of_the_fullest() -> None:
    """Counts of several workers add up, whatever they count."""
    for kind, labels in (("counter", ("kind",)), ("gauge", ())):
        with pytest.raises(ValueError, match="only gauges"):
            Metric("in_use_total", kind, "In use.", labels, fullest=("listener",))  # type: ignore[arg-type]
