"""Clock: monotonic durations, wall time derived from one anchor."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.clock import Clock, FakeTime

MOMENTS = st.floats(0, 1e9)


def test_the_clock_is_the_one_other_processes_read() -> None:
    """Readings are ``perf_counter``'s, so that two workers can compare theirs."""
    before = time.perf_counter()
    reading = Clock().now()
    assert before <= reading <= time.perf_counter()


def test_a_clock_is_anchored_at_the_moment_it_is_made() -> None:
    """The wall time of the anchor lies between wall readings before and after."""
    before = time.time()
    clock = Clock()
    assert before <= clock.wall(clock.anchor_monotonic) <= time.time()


def test_setting_the_wall_clock_changes_no_timestamp(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wall time is read once; a later correction by NTP moves nothing already running."""
    clock = Clock()
    expected = clock.wall(clock.anchor_monotonic + 60.0)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert clock.wall(clock.anchor_monotonic + 60.0) == expected


@given(start=MOMENTS, wall=MOMENTS, passed=st.floats(0, 1e6))
def test_wall_time_is_the_anchor_and_what_has_passed_since(
    start: float, wall: float, passed: float
) -> None:
    """Whatever the anchor, wall time moves as far as the monotonic clock does."""
    fake = FakeTime(start)
    clock = fake.clock(wall)
    fake.advance(passed)
    assert clock.wall(clock.now()) == pytest.approx(wall + passed, abs=1e-5)


def test_a_moment_before_the_anchor_has_a_wall_time_too() -> None:
    """A request that began before the agent did is dated by the same anchor."""
    assert FakeTime(10.0).clock(wall=1000.0).wall(4.0) == 994.0


def test_fake_time_moves_only_when_pushed() -> None:
    """Two readings without a push are equal."""
    fake = FakeTime(3.0)
    assert fake.now() == fake.now() == 3.0


def test_fake_time_never_goes_back() -> None:
    """A push backwards is refused, as no monotonic clock would do it."""
    fake = FakeTime(3.0)
    with pytest.raises(ValueError, match="cannot go back"):
        fake.advance(-1.0)
    assert fake.now() == 3.0
