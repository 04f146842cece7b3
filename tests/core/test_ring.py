"""The ring: the newest stays, and what fell out is known."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.ring import Ring


def filled(capacity: int, count: int) -> Ring[int]:
    ring: Ring[int] = Ring(capacity)
    for number in range(count):
        ring.append(number)
    return ring


@given(st.integers(1, 10), st.lists(st.one_of(st.none(), st.integers(0, 30)), max_size=10))
def test_every_item_is_read_held_or_known_to_have_been_dropped(
    capacity: int, steps: list[int | None]
) -> None:
    """Whatever the order of appends (a number) and drains (None), no item goes unaccounted."""
    ring: Ring[int] = Ring(capacity)
    appended, read = 0, list[int]()
    for step in steps:
        if step is None:
            read += ring.drain()
        else:
            for _ in range(step):
                ring.append(appended)
                appended += 1
        assert len(ring) <= capacity
        assert len(read) + len(ring) + ring.dropped == appended
    held = ring.latest()
    assert held == list(range(appended))[appended - len(held) :]
    assert read == sorted(set(read))


def test_the_newest_are_kept_oldest_first() -> None:
    """A full ring gives way at its old end."""
    assert filled(3, 5).latest() == [2, 3, 4]


def test_looking_takes_nothing_out() -> None:
    """``latest`` leaves everything to the next drain, and its list is the caller's own."""
    ring = filled(3, 2)
    ring.latest().clear()
    assert ring.drain() == [0, 1]
    assert ring.drain() == []


def test_what_was_read_was_not_dropped() -> None:
    """Draining makes room; only what made way unread is counted."""
    ring = filled(2, 2)
    ring.drain()
    ring.append(2)
    assert ring.dropped == 0


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_ring_without_room_is_refused(capacity: int) -> None:
    """Holding nothing would be dropping everything."""
    with pytest.raises(ValueError, match="at least one"):
        Ring[int](capacity)


def test_draining_while_others_append_loses_nothing() -> None:
    """Each item of two appending threads is read exactly once, in its thread's order."""
    ring: Ring[tuple[str, int]] = Ring(20_000)

    def append(name: str) -> None:
        for number in range(10_000):
            ring.append((name, number))

    threads = [threading.Thread(target=append, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    read: list[tuple[str, int]] = []
    while any(thread.is_alive() for thread in threads):
        read += ring.drain()
    read += ring.drain()
    for thread in threads:
        thread.join()
    for name in "ab":
        assert [number for by, number in read if by == name] == list(range(10_000))
    assert ring.dropped == 0
