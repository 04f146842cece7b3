"""Clock, ring, histogram, budget and faults: small parts that others lean on."""

from __future__ import annotations

import logging
from bisect import bisect_left
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.budget import Budget
from loopscope.core.clock import FakeTime
from loopscope.core.faults import Faults
from loopscope.core.histogram import Histogram, cumulate
from loopscope.core.metric import DURATION_BOUNDS, Metric
from loopscope.core.ring import Ring


def test_wall_time_follows_the_monotonic_clock() -> None:
    """Wall time is the anchor plus what has passed since."""
    time = FakeTime(10.0)
    clock = time.clock(wall=1000.0)
    time.advance(5.0)
    assert clock.wall(clock.now()) == 1005.0


def test_monotonic_time_never_goes_back() -> None:
    """Not even in tests."""
    with pytest.raises(ValueError, match="cannot go back"):
        FakeTime().advance(-1.0)


@given(st.lists(st.floats(0, 100)))
def test_a_histogram_counts_like_counting_by_hand(observed: list[float]) -> None:
    """Every observation lies at or below exactly the bounds it is at or below."""
    slots = memoryview(bytearray(8 * (len(DURATION_BOUNDS) + 2))).cast("d")
    histogram = Histogram(slots, 0, DURATION_BOUNDS)
    for value in observed:
        histogram.observe(value)
    by_hand = [float(sum(value <= bound for value in observed)) for bound in DURATION_BOUNDS]
    *buckets, total = slots.tolist()
    assert cumulate(buckets) == [*by_hand, float(len(observed))]
    assert total == list(accumulate([0.0, *observed]))[-1]


def test_a_bound_belongs_to_its_bucket() -> None:
    """``le`` means less or equal."""
    assert bisect_left(DURATION_BOUNDS, DURATION_BOUNDS[3]) == 3


def test_a_ring_keeps_the_newest_and_counts_the_rest() -> None:
    """What does not fit makes way, and is known to have done so."""
    ring: Ring[int] = Ring(3)
    for number in range(5):
        ring.append(number)
    assert ring.latest() == [2, 3, 4]
    assert ring.dropped == 2
    assert ring.drain() == [2, 3, 4]
    assert len(ring) == 0
    assert ring.dropped == 2


def test_beyond_its_limit_a_budget_folds_and_counts() -> None:
    """Known keys keep their value, new ones share the overflow."""
    budget: Budget[str, str] = Budget(2, str.upper, lambda: "OVERFLOW")
    assert [budget.admit(key) for key in "abcab"] == ["A", "B", "OVERFLOW", "A", "B"]
    assert budget.folded == 1


def test_a_budget_without_room_says_so() -> None:
    """Where nothing can be made, not even an overflow, there is no value."""
    budget: Budget[str, str] = Budget(2, lambda _: None, lambda: None)
    assert budget.admit("a") is None


@pytest.mark.parametrize(
    ("name", "kind", "bounds"),
    [
        ("a", "counter", ()),
        ("a_total", "gauge", ()),
        ("a", "histogram", ()),
        ("a", "gauge", (1.0,)),
    ],
)
def test_a_metric_that_contradicts_itself_is_refused(
    name: str, kind: str, bounds: tuple[float, ...]
) -> None:
    """Names, kinds and bounds have to agree when a metric is declared."""
    with pytest.raises(ValueError, match=name):
        Metric(name, kind, "Help.", bounds=bounds)  # type: ignore[arg-type]


@pytest.mark.quiet_faults
def test_a_fault_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure of a kind is logged with its traceback, the others only counted."""
    faults = Faults()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            faults.report("routes", LookupError("no"))
    assert faults.counts == {"routes": 3}
    assert len(caplog.records) == 1


@pytest.mark.quiet_faults
def test_a_part_that_keeps_failing_is_switched_off() -> None:
    """After a hundred failures a part is off."""
    faults = Faults()
    for _ in range(Faults.TOLERANCE):
        assert not faults.is_off("routes")
        faults.report("routes", LookupError("no"))
    assert faults.is_off("routes")


def test_in_our_own_tests_a_fault_is_loud() -> None:
    """Nothing is swallowed while we test."""
    with pytest.raises(LookupError):
        Faults().report("routes", LookupError("no"))
