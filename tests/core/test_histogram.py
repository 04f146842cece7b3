"""Histograms and numbers: each does its few additions right, in its own slots only."""

from __future__ import annotations

from itertools import accumulate
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.histogram import Histogram, Number, cumulate
from loopscope.core.metric import DURATION_BOUNDS

BOUNDS = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20, unique=True).map(sorted)
VALUES = st.floats(-1e6, 1e6)


def slots_of(count: int) -> memoryview[float]:
    return memoryview(bytearray(8 * count)).cast("d")


@st.composite
def bounds_and_values(draw: st.DrawFn) -> tuple[list[float], list[float]]:
    """Bounds, and values that are often exactly one of them."""
    bounds = draw(BOUNDS)
    return bounds, draw(st.lists(st.one_of(VALUES, st.sampled_from(bounds))))


@given(bounds_and_values())
def test_it_counts_as_one_would_by_hand(case: tuple[list[float], list[float]]) -> None:
    """Cumulated buckets say, of every bound, how many values were less or equal."""
    bounds, values = case
    slots = slots_of(len(bounds) + 2)
    histogram = Histogram(slots, 0, bounds)
    for value in values:
        histogram.observe(value)
    *buckets, total = slots.tolist()
    by_hand = [sum(value <= bound for value in values) for bound in [*bounds, inf]]
    assert cumulate(buckets) == by_hand
    assert total == list(accumulate(values, initial=0.0))[-1]


@given(bounds_and_values())
def test_all_at_once_are_counted_as_one_by_one(case: tuple[list[float], list[float]]) -> None:
    """However many there are, what is published of them is the same."""
    bounds, values = case
    slots, at_once = slots_of(len(bounds) + 2), slots_of(len(bounds) + 2)
    histogram = Histogram(slots, 0, bounds)
    for value in values:
        histogram.observe(value)
    Histogram(at_once, 0, bounds).observe_all(values)
    assert at_once.tolist()[:-1] == slots.tolist()[:-1]
    assert at_once[-1] == pytest.approx(slots[-1], abs=1e-6)


@pytest.mark.parametrize("number", range(len(DURATION_BOUNDS)))
def test_a_value_equal_to_a_bound_belongs_to_its_bucket(number: int) -> None:
    """``le`` means less or equal, for every bound we publish durations with."""
    slots = slots_of(len(DURATION_BOUNDS) + 2)
    Histogram(slots, 0, DURATION_BOUNDS).observe(DURATION_BOUNDS[number])
    assert list(slots).index(1.0) == number


def test_what_is_beyond_all_bounds_is_counted_too() -> None:
    """The last bucket takes whatever is larger, infinity included."""
    slots = slots_of(4)
    histogram = Histogram(slots, 0, (1.0, 2.0))
    for value in (2.1, 1e300, inf):
        histogram.observe(value)
    assert slots.tolist() == [0.0, 0.0, 3.0, inf]


@given(st.lists(st.tuples(st.integers(0, 2), VALUES), max_size=50))
def test_neighbours_keep_out_of_each_others_slots(observed: list[tuple[int, float]]) -> None:
    """Histograms side by side in one buffer count as they would alone."""
    bounds = (-1.0, 0.0, 1.0)
    width = len(bounds) + 2
    together, alone = slots_of(3 * width), [slots_of(width) for _ in range(3)]
    for which, value in observed:
        Histogram(together, which * width, bounds).observe(value)
        Histogram(alone[which], 0, bounds).observe(value)
    assert together.tolist() == [value for slots in alone for value in slots.tolist()]


def test_a_number_is_added_to_or_set() -> None:
    """A counter adds, one by default; a gauge is set; neither touches its neighbours."""
    slots = slots_of(3)
    number = Number(slots, 1)
    number.add()
    number.add(2.5)
    assert number.value == 3.5
    number.set(-1.0)
    assert slots.tolist() == [0.0, -1.0, 0.0]


def test_nothing_cumulates_to_nothing() -> None:
    """No buckets, no counts."""
    assert cumulate([]) == []
