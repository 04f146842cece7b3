"""The collector's figures, driven by real collections."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from loopscope.core.clock import Clock, FakeTime
from loopscope.core.metric import STEP_BOUNDS
from loopscope.core.page import Page, PageReader
from loopscope.sources.gc import COLLECTED, COLLECTIONS, PAUSE, UNCOLLECTABLE, GcSource

GENERATIONS = ("0", "1", "2")


@pytest.fixture(autouse=True)
def no_automatic_collections() -> Iterator[None]:
    """Only the collections a test asks for happen."""
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def page() -> Page:
    return Page.anonymous(Clock(), capacity=1 << 16)


@contextmanager
def hooked(page: Page, now: Callable[[], float] = time.perf_counter) -> Iterator[GcSource]:
    source = GcSource(page, now)
    source.start()
    try:
        yield source
    finally:
        source.stop()


def counts(page: Page, name: str) -> dict[str, float]:
    """A counter's value by generation."""
    return {labels: values[0] for labels, values in _slots(page, name).items()}


def pauses(page: Page, generation: str) -> tuple[list[float], float]:
    """A generation's pauses: how many in each bucket, and the sum in seconds."""
    *buckets, total = _slots(page, PAUSE.name)[generation]
    return buckets, total


def _slots(page: Page, name: str) -> dict[str, list[float]]:
    reader = PageReader()
    reader.update(page.view)
    return {
        s.labels[0]: [float(value) for value in memoryview(s.raw(page.view)).cast("d")]
        for s in reader.series
        if s.metric.name == name
    }


def make_garbage(cycles: int) -> None:
    """Unreachable lists, each holding itself."""
    for _ in range(cycles):
        knot: list[object] = []
        knot.append(knot)


class Finalizer:
    """Garbage that does something while it is collected."""

    def __init__(self, action: Callable[[], object]) -> None:
        self.action = action
        self.itself = self

    def __del__(self) -> None:
        self.action()


@pytest.mark.parametrize("name", [COLLECTIONS.name, COLLECTED.name, UNCOLLECTABLE.name, PAUSE.name])
def test_every_generation_has_its_series(page: Page, name: str) -> None:
    """Each metric has one series a generation from the start, so that rates begin at zero."""
    GcSource(page, time.perf_counter)
    assert tuple(_slots(page, name)) == GENERATIONS


def test_counts_are_the_interpreters_own(page: Page) -> None:
    """After refresh the counters are what gc.get_stats() says, hooked in or not."""
    source = GcSource(page, time.perf_counter)
    gc.collect()
    source.refresh()
    for name, key in (
        (COLLECTIONS.name, "collections"),
        (COLLECTED.name, "collected"),
        (UNCOLLECTABLE.name, "uncollectable"),
    ):
        assert list(counts(page, name).values()) == [s[key] for s in gc.get_stats()]


def test_collected_objects_are_counted(page: Page) -> None:
    """A thousand knots of garbage are at least a thousand collected objects."""
    source = GcSource(page, time.perf_counter)
    gc.collect()
    source.refresh()
    before = counts(page, COLLECTED.name)
    make_garbage(1000)
    gc.collect()
    source.refresh()
    assert counts(page, COLLECTED.name)["2"] - before["2"] >= 1000


@pytest.mark.parametrize("generation", [0, 1, 2])
def test_each_collection_is_one_pause_of_its_generation(page: Page, generation: int) -> None:
    """A collection is observed once, under its own generation and no other."""
    with hooked(page):
        gc.collect(generation)
        gc.collect(generation)
    observed = {label: sum(pauses(page, label)[0]) for label in GENERATIONS}
    assert observed == {label: 2.0 * (label == str(generation)) for label in GENERATIONS}
    assert pauses(page, str(generation))[1] > 0


def test_a_pause_lasts_from_start_to_stop_and_falls_into_its_bucket(page: Page) -> None:
    """A pause of exactly a bound, by the clock handed in, counts in that bound's bucket."""
    time_ = FakeTime(start=1024.0)
    with hooked(page, time_.now):
        knot = Finalizer(lambda: time_.advance(0.25))
        del knot
        gc.collect()
    buckets, total = pauses(page, "2")
    assert buckets[STEP_BOUNDS.index(0.25)] == sum(buckets) == 1
    assert total == 0.25


def test_a_pause_beyond_all_bounds_is_still_counted(page: Page) -> None:
    """What is longer than the last bound goes into the open bucket."""
    time_ = FakeTime(start=1024.0)
    with hooked(page, time_.now):
        knot = Finalizer(lambda: time_.advance(64.0))
        del knot
        gc.collect()
    buckets, total = pauses(page, "2")
    assert (buckets[-1], total) == (1, 64.0)


def test_a_collection_asked_for_within_a_collection_does_not_nest(page: Page) -> None:
    """Finalizers that collect, here and in another thread, leave one pause: the outer one."""

    def collect_everywhere() -> None:
        gc.collect()
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()

    with hooked(page):
        knot = Finalizer(collect_everywhere)
        del knot
        gc.collect()
    assert sum(sum(pauses(page, label)[0]) for label in GENERATIONS) == 1


def test_no_pause_is_lost_when_many_threads_collect(page: Page) -> None:
    """Pauses and the interpreter's count agree however many threads collect at once."""

    def collect_often() -> None:
        for _ in range(300):
            make_garbage(10)
            gc.collect(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # change threads wherever it is possible
    try:
        with hooked(page):
            before = gc.get_stats()[0]["collections"]
            threads = [threading.Thread(target=collect_often) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            happened = gc.get_stats()[0]["collections"] - before
    finally:
        sys.setswitchinterval(interval)
    assert sum(pauses(page, "0")[0]) == happened > 0


def test_automatic_collections_are_seen(page: Page) -> None:
    """The collections the interpreter starts by itself are timed like those asked for."""
    with hooked(page):
        gc.enable()
        kept = [[number] for number in range(20_000)]
        gc.disable()
    assert len(kept) == 20_000
    assert sum(pauses(page, "0")[0]) > 0


def test_the_hook_leaves_nothing_for_the_collector(page: Page) -> None:
    """The hook itself makes no object the collector would have to track."""
    with hooked(page):
        gc.collect()
        before = gc.get_count()[0]
        hook = gc.callbacks[-1]
        info = {"generation": 0, "collected": 0, "uncollectable": 0}
        base = gc.get_count()[0] - before
        for _ in range(1000):
            hook("start", info)
            hook("stop", info)
        assert gc.get_count()[0] - before - base <= 1


def test_starting_twice_is_one_hook(page: Page) -> None:
    """Started twice, each collection is still observed once, and one stop takes the hook out."""
    hooks = list(gc.callbacks)
    with hooked(page) as source:
        source.start()
        gc.collect()
    assert sum(pauses(page, "2")[0]) == 1
    assert gc.callbacks == hooks


def test_stopping_takes_out_our_hook_and_no_other(page: Page) -> None:
    """Hooks of others, a second source's too, stay in place and in order."""

    def others(phase: str, info: dict[str, int]) -> None:
        """Somebody else's hook."""

    before = list(gc.callbacks)
    gc.callbacks.append(others)
    try:
        with hooked(page):
            with hooked(Page.anonymous(Clock(), capacity=1 << 16)):
                pass
            left = len(gc.callbacks)
            gc.collect()
        assert gc.callbacks == [*before, others]
    finally:
        gc.callbacks.remove(others)
    assert left == len(before) + 2
    assert sum(pauses(page, "2")[0]) == 1


def test_stopping_without_starting_is_nothing(page: Page) -> None:
    """stop() may be called at any time, and as often as one likes."""
    hooks = list(gc.callbacks)
    source = GcSource(page, time.perf_counter)
    source.stop()
    source.stop()
    assert gc.callbacks == hooks


def test_after_stop_nothing_is_observed(page: Page) -> None:
    """Collections after stop() leave the histogram alone."""
    with hooked(page):
        pass
    gc.collect()
    assert sum(pauses(page, "2")[0]) == 0


def test_half_a_collection_is_no_pause(page: Page) -> None:
    """Hooked in, out or in again in the middle of a collection, no pause is made up from halves."""
    time_ = FakeTime(start=1.0)
    source = GcSource(page, time_.now)
    for action in (source.start, source.stop, source.start):
        knot = Finalizer(action)
        del knot
        gc.collect()
        time_.advance(1000.0)
    source.stop()
    assert [sum(pauses(page, label)[0]) for label in GENERATIONS] == [0, 0, 0]


def test_a_failure_in_the_hook_is_raised_by_refresh_only(page: Page) -> None:
    """A broken clock disturbs no collection; the next refresh raises it once, counts in place."""

    def broken() -> float:
        raise RuntimeError("no clock")

    with hooked(page, broken) as source:
        gc.collect()  # an exception let out of the hook would fail this test as a warning
        with pytest.raises(RuntimeError, match="no clock"):
            source.refresh()
        assert list(counts(page, COLLECTIONS.name).values()) == [
            s["collections"] for s in gc.get_stats()
        ]
        source.refresh()


def test_a_start_that_could_not_be_timed_is_no_pause(page: Page) -> None:
    """When the clock fails at a collection's start, its end is not measured from an older start."""
    readings = iter([1.0, 1.5, None, 1000.0])

    def now() -> float:
        reading = next(readings)
        if reading is None:
            raise RuntimeError("no clock")
        return reading

    with hooked(page, now) as source:
        gc.collect()
        gc.collect()
    buckets, total = pauses(page, "2")
    assert (sum(buckets), total) == (1, 0.5)
    with pytest.raises(RuntimeError, match="no clock"):
        source.refresh()


def test_an_unknown_generation_is_a_failure_like_any_other(page: Page) -> None:
    """A generation this interpreter did not announce is reported, not recorded elsewhere."""
    with hooked(page) as source:
        hook = gc.callbacks[-1]
        hook("start", {"generation": 7})
        hook("stop", {"generation": 7})
    with pytest.raises(IndexError):
        source.refresh()
    assert [sum(pauses(page, label)[0]) for label in GENERATIONS] == [0, 0, 0]
