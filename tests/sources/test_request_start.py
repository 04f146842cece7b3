"""What a proxy says about when a request came in, believed and not."""

from __future__ import annotations

import pytest

from loopscope.sources.request_start import LONGEST, seconds_queued

NOW = 1_800_000_000.0


def queued(value: bytes, name: bytes = b"x-request-start") -> float | None:
    return seconds_queued({"headers": [(b"host", b"a"), (name, value)]}, lambda: NOW)


@pytest.mark.parametrize("value", [b"1799999999.5", b"t=1799999999500", b"t=1799999999500000"])
def test_seconds_milliseconds_and_microseconds_are_told_apart(value: bytes) -> None:
    """Proxies disagree about the unit; its size says which one is meant."""
    assert queued(value) == pytest.approx(0.5)


@pytest.mark.parametrize("value", [b"", b"soon", b"t=", b"nan", b"12", b"1e30", b"\xff"])
def test_what_is_no_moment_is_ignored(value: bytes) -> None:
    """Anybody can send the header."""
    assert queued(value) is None


def test_a_clock_ahead_of_ours_makes_no_wait() -> None:
    """A little in the future is no wait at all, rather than a negative one."""
    assert queued(b"1800000001") == 0.0


def test_what_cannot_be_true_is_not_believed() -> None:
    """Neither hours ago nor hours ahead."""
    assert queued(str(NOW - LONGEST - 1).encode()) is None
    assert queued(str(NOW + LONGEST + 1).encode()) is None


def test_without_the_header_there_is_nothing_to_say() -> None:
    """Other headers are not looked at."""
    assert queued(b"1799999999", b"x-other") is None
