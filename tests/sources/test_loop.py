"""The loop's monitor: delay and time, on real loops and with pushed clocks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.clock import FakeTime
from loopscope.core.metric import STEP_BOUNDS
from loopscope.core.page import Page
from loopscope.sources.loop import LoopMonitor

THRESHOLD = 0.05
LIBUV_TICK = 0.002
"""A loop in C says when it was polling in whole milliseconds, give or take one."""


@pytest.fixture
def page() -> Iterator[Page]:
    made = Page.anonymous(FakeTime().clock(), capacity=1 << 20)
    yield made
    made.close()


def delays(page: Page, monitor: LoopMonitor) -> list[float]:
    base = monitor._delays
    return list(page.slots[base : base + len(STEP_BOUNDS) + 2])


@given(late=st.integers(0, 20_000).map(lambda number: number / 1000 + 0.00037))
def test_a_late_beat_counts_for_those_it_swallowed(late: float) -> None:
    """Delays are those of every beat there should have been, as if each had been counted."""
    page = Page.anonymous(FakeTime().clock(), capacity=1 << 20)
    monitor = LoopMonitor(page, time.perf_counter, THRESHOLD)
    monitor._count(late)
    *buckets, total = delays(page, monitor)
    swallowed = [late]
    while swallowed[-1] > monitor.interval:
        swallowed.append(swallowed[-1] - monitor.interval)
    expected: list[float] = [0.0] * len(buckets)
    for delay in swallowed:
        expected[next((n for n, b in enumerate(STEP_BOUNDS) if delay <= b), len(STEP_BOUNDS))] += 1
    assert buckets == expected
    assert total == pytest.approx(sum(swallowed))
    page.close()


async def watched(page: Page, hold: float = 0.0) -> LoopMonitor:
    monitor = LoopMonitor(page, time.perf_counter, THRESHOLD)
    monitor.attach()
    await asyncio.sleep(0.1)
    if hold:
        time.sleep(hold)  # noqa: ASYNC251  # what it is about
    await asyncio.sleep(0.05)
    return monitor


@pytest.mark.real_time
@pytest.mark.anyio
async def test_a_hold_is_noted_once_with_its_length(page: Page) -> None:
    """A loop that was held says when, to within a heartbeat."""
    monitor = await watched(page, hold=0.12)
    held = [until - since for since, until in monitor.ended if until - since >= 0.1]
    assert len(held) == 1
    assert held[0] >= 0.12 - monitor.interval
    monitor.detach()


@pytest.mark.real_time
@pytest.mark.anyio
async def test_an_idle_loop_is_never_stuck(page: Page) -> None:
    """Waiting for something to happen is no hold of the loop."""
    monitor = await watched(page)
    assert monitor.is_running()
    assert not [each for each in monitor.ended if each[1] - each[0] > 10 * THRESHOLD]
    monitor.detach()


@pytest.mark.real_time
@pytest.mark.anyio
async def test_a_hold_between_two_beats_is_seen_from_outside(page: Page) -> None:
    """A loop that tells exactly is known to be held although no beat of its own is late."""
    monitor = LoopMonitor(page, time.perf_counter, THRESHOLD)
    monitor.attach()
    assert monitor.is_exact
    await asyncio.sleep(0.1)
    monitor.doze(lambda: None)
    await asyncio.sleep(0.1)
    since: list[float] = []

    def watch() -> None:
        time.sleep(0.08)
        since.append(monitor.stuck_since(time.perf_counter()))

    watcher = threading.Thread(target=watch)
    before = time.perf_counter()
    await asyncio.sleep(0.01)
    watcher.start()
    began = time.perf_counter()
    time.sleep(0.15)  # noqa: ASYNC251  # what it is about
    watcher.join()
    ended = time.perf_counter()
    await asyncio.sleep(0.02)
    after = time.perf_counter()
    assert before <= since[0] <= began + LIBUV_TICK
    held = [each for each in monitor.ended if each[1] - each[0] >= 0.12]
    assert len(held) == 1
    assert before <= held[0][0] <= began + LIBUV_TICK
    assert ended - LIBUV_TICK <= held[0][1] <= after
    monitor.detach()


@pytest.mark.real_time
@pytest.mark.anyio
async def test_a_loop_that_rests_is_seen_to_rest_and_hardly_beats(page: Page) -> None:
    """However long it has been polling it is not held, and its beats come seldom."""
    monitor = await watched(page)
    monitor.doze(lambda: None)
    seen: list[tuple[float, float, float]] = []

    def watch() -> None:
        for _ in range(3):
            time.sleep(0.05)
            now = time.perf_counter()
            seen.append((monitor.stuck_since(now), monitor.resting(now), monitor.due - now))

    await asyncio.to_thread(watch)
    assert [since for since, _, _ in seen] == [0.0] * 3
    assert seen[-1][1] >= THRESHOLD
    assert seen[-1][2] > 10 * THRESHOLD
    monitor.detach()


def test_beats_left_out_in_a_rest_count_as_on_time(page: Page) -> None:
    """A second in which nothing had to wait weighs as much in a rest as between two requests."""
    monitor = LoopMonitor(page, time.perf_counter, THRESHOLD)
    monitor.interval = 1.0
    monitor._count(0.0001)
    assert sum(delays(page, monitor)[:-1]) == pytest.approx(1.0 / monitor._watchful)


@pytest.mark.real_time
@pytest.mark.anyio
async def test_a_loop_with_a_selector_calls_when_it_comes_back(page: Page) -> None:
    """For whatever it comes back; but its own beat alone wakes nobody."""
    monitor = await watched(page)
    if not monitor.has_selector:
        pytest.skip("has no selector to tell by")
    calls: list[float] = []
    monitor.doze(lambda: calls.append(time.perf_counter()))
    loop = asyncio.get_running_loop()
    timer = monitor._timer
    assert timer is not None
    await asyncio.sleep(max(0.0, timer.when() - loop.time()) + 0.2)
    assert len(calls) == 1
    assert calls[0] > monitor.due - 1.0
    monitor.detach()


@pytest.mark.real_time
@pytest.mark.anyio
async def test_busy_and_idle_seconds_add_up(page: Page) -> None:
    """Busy and idle together are the time since the monitor was attached; holds are busy."""
    began = time.perf_counter()
    monitor = await watched(page, hold=0.15)
    cpu = time.thread_time
    before = cpu()
    monitor.refresh(lambda: cpu() - before + 0.15)
    elapsed = time.perf_counter() - began
    busy, idle = monitor._busy.value, monitor._idle.value
    assert busy + idle == pytest.approx(elapsed, rel=0.2)
    assert busy >= 0.15
    assert idle > 0
    monitor.detach()


@pytest.mark.real_time
@pytest.mark.anyio
async def test_detaching_leaves_the_loop_as_it_was(page: Page) -> None:
    """No wrapper and, a beat later, no timer of ours stays on the loop."""
    loop: Any = asyncio.get_running_loop()
    monitor = LoopMonitor(page, time.perf_counter, THRESHOLD)
    monitor.attach()
    selector = getattr(loop, "_selector", None)
    monitor.detach()
    assert selector is None or "select" not in selector.__dict__
    await asyncio.sleep(3 * monitor.interval)
    assert monitor.due == 0.0
    assert not monitor.is_running()


@pytest.mark.real_time
def test_a_loop_that_was_stopped_was_not_held(page: Page) -> None:
    """Between two runs a loop is nobody's: the time does not count once the watchdog saw that."""
    monitor = LoopMonitor(page, time.perf_counter, THRESHOLD)

    async def once() -> None:
        monitor.attach()
        await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(once())
    assert not monitor.is_running()
    monitor.forget()
    time.sleep(2 * THRESHOLD)
    loop.run_until_complete(asyncio.sleep(0.03))
    assert not [each for each in monitor.ended if each[1] - each[0] >= THRESHOLD]
    monitor.detach()
    loop.close()
