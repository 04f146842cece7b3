"""The event loop: how late it runs what is due, and how much of its time is taken.

A heartbeat, a timer on the loop itself, measures how late it runs. A loop that stands still for
500 ms is late once, but whatever had come in that time would have waited as well: so a late beat
also counts for each beat it swallowed, 500, 490, 480 ... ms (the correction for coordinated
omission), and the histogram's p99 is what a request arriving at random would have suffered.

Where the loop polls through a selector of Python's (asyncio), that selector is wrapped as well. It
knows exactly when the loop goes idle and when it comes back, so there each iteration's length is
known and nothing has to be inferred from late beats. uvloop polls in C and shows nothing: there a
late beat is all there is, half a beat less precise.

Everything here runs on the loop's thread and does a fixed, small amount of work, also when a stall
ends. ``sources.stalls`` reads what is left behind from a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
import time
import weakref
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from math import inf
from types import CodeType
from typing import Any

from loopscope.core.histogram import Number
from loopscope.core.metric import STEP_BOUNDS, Metric
from loopscope.core.page import Page
from loopscope.sources.wakeups import LONG_PASS, WakeUps

DELAY = Metric(
    "asyncio_eventloop_delay_seconds",
    "histogram",
    "How late the event loop ran a timer, each late one counted once more for every beat it "
    "swallowed: what something arriving at random had to wait.",
    unit="seconds",
    bounds=STEP_BOUNDS,
)
TIME = Metric(
    "asyncio_eventloop_time_seconds_total",
    "counter",
    "Seconds the event loop was busy and idle. asyncio: told by its selector. uvloop: busy is the "
    "CPU time of the loop's thread and what it waited in stalls, idle is the rest.",
    ("state",),
    unit="seconds",
)

METRICS = (DELAY, TIME)

Interval = tuple[float, float]
"""Two moments on the agent's clock: from when, until when."""

_MOST_ENDED = 256
_DOZING = 0.25  # seconds between beats of an idle loop that can call the watchdog
_BUSY = 0.1  # the share of CPU from which a loop is no idle one
_EMPTY = contextvars.Context()


class LoopMonitor:
    """Heartbeat and, where possible, selector of one event loop.

    ``threshold`` seconds is how long a hold of the loop has to be to be put on ``ended``.
    """

    def __init__(self, page: Page, now: Callable[[], float], threshold: float) -> None:
        self.threshold = threshold
        self._brisk = max(threshold / 5, 0.005)
        self._calm = max(threshold / 2, 0.01)
        self.interval = self._brisk
        """Seconds from the last beat to the next: few where the loop tells more, or is idle."""
        self.ended: deque[Interval] = deque(maxlen=_MOST_ENDED)
        """Holds of the loop that are over; for the watchdog to take."""
        self.latest_stall: Interval = (0.0, 0.0)
        """The last of those."""
        self.due = 0.0
        """When the next beat should come; 0.0 if none has to."""
        self.busy_since = 0.0
        """When a selector's loop came back from polling; 0.0 while it polls."""
        self.has_selector = False
        self.thread = 0
        self.native_id = 0
        self.blocked = 0.0
        """Seconds in stalls that its thread's CPU clock does not show; the watchdog's to add to."""
        self._now = now
        self._wakeups = WakeUps(now)
        self._slots = page.slots
        self._delays = page.allocate(DELAY)
        self._busy = Number(page.slots, page.allocate(TIME, ("busy",)))
        self._idle = Number(page.slots, page.allocate(TIME, ("idle",)))
        self.base: CodeType | None = None
        """The code that runs a loop whose own frames are not Python's."""
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self._cpu_before = 0.0
        self._wake: Callable[[], None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._restore: Callable[[], None] = lambda: None
        self._generation = 0
        self._polled = 0.0
        self._polling_since = 0.0
        self._attached = 0.0

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        return self._loop()

    def attach(self) -> None:
        """Watch the running loop from now on, on its own thread. Twice is once."""
        loop = asyncio.get_running_loop()
        if self._loop() is loop and self._timer is not None:
            return
        self.detach()
        self._loop = weakref.ref(loop)
        self.thread = threading.get_ident()
        self.native_id = threading.get_native_id()
        self.base = None
        self._wakeups.attach(loop)
        self._wrap_selector(getattr(loop, "_selector", None))
        self._generation += 1
        self._schedule(loop)

    def detach(self) -> None:
        """Leave the loop as it was; from any thread."""
        self._generation += 1
        self._restore()
        self._restore = lambda: None
        self._wakeups.detach()
        self._timer = None
        self.forget()
        self._loop = lambda: None

    def forget(self) -> None:
        """What was measured last is no beginning: the loop has stopped, or will."""
        self.due = self.busy_since = 0.0

    def is_running(self) -> bool:
        loop = self._loop()
        return loop is not None and loop.is_running()

    def stuck_since(self, now: float) -> float:
        """Since when the loop has not come round, as far as that can be seen; 0.0 if it has."""
        due = self.due
        if self.has_selector:
            # A loop that has polled for longer than to its next beat wants the interpreter back.
            return self.busy_since or (due if due and now - due > self.interval else 0.0)
        return due - self.interval / 2 if due and now > due else 0.0

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        cpu = time.thread_time()
        self.interval = interval = self._next_interval(cpu)
        self._cpu_before = cpu
        self.due = self._now() + interval
        self._timer = loop.call_later(interval, self._beat, self._generation, context=_EMPTY)

    def _next_interval(self, cpu: float) -> float:
        """Waking an idle process costs ten times what a beat costs a busy one."""
        if self._wake is not None:
            return _DOZING if self.has_selector else 2 * self._calm
        if self.has_selector:
            return max(self._calm, 0.05)
        return self._brisk if cpu - self._cpu_before >= _BUSY * self.interval else self._calm

    def doze(self, wake: Callable[[], None]) -> None:
        """Nothing has happened for a while: beat slowly, and call ``wake`` when something does."""
        self._wake = wake

    def rouse(self) -> None:
        """Something happens again."""
        wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def _beat(self, generation: int) -> None:
        loop = self._loop()
        if generation != self._generation or loop is None:
            return  # detached in the meantime
        due = self.due
        if self.base is None and not self.has_selector:
            self.base = _caller()
        if due:
            now = self._now()
            late = max(0.0, now - due)
            self._count(late)
            self._wakeups.beat(late, now)
            held_since = due - self.interval / 2
            if not self.has_selector and now - held_since >= self.threshold:
                self._note_stall(held_since, now)
        self._schedule(loop)

    def _note_stall(self, began: float, ended: float) -> None:
        self.latest_stall = (began, ended)
        self.ended.append(self.latest_stall)

    def _count(self, late: float) -> None:
        """Add one delay, and those of the beats it swallowed, without a loop over them."""
        slots = self._slots
        base = self._delays
        if late <= self.interval:
            slots[base + bisect_left(STEP_BOUNDS, late)] += 1.0
            slots[base + len(STEP_BOUNDS) + 1] += late
            return
        beats = int(late / self.interval) + 1
        left = beats
        for number, bound in enumerate((*STEP_BOUNDS, inf)):
            if left and late - (left - 1) * self.interval <= bound:
                # Of late - k * interval (k = 0 ... left - 1), those that are at most this bound.
                above = 0 if bound >= late else min(left, int((late - bound) / self.interval) + 1)
                slots[base + number] += left - above
                left = above
        slots[base + len(STEP_BOUNDS) + 1] += beats * late - self.interval * beats * (beats - 1) / 2

    def _wrap_selector(self, selector: Any) -> None:
        self.has_selector = hasattr(selector, "select") and hasattr(selector, "__dict__")
        self._attached = self._now()
        self._polled = self._polling_since = 0.0
        if not self.has_selector:
            return
        select = selector.select
        now = self._now
        threshold = self.threshold
        note_stall = self._note_stall
        on_pass = self._wakeups.passed

        def timed_select(timeout: float | None = None) -> Any:
            began = now()
            since = self.busy_since
            if since:
                passed = began - since
                if passed > LONG_PASS:
                    on_pass(passed, began)
                    if passed >= threshold:
                        note_stall(since, began)
            if timeout is not None and timeout <= 0:  # only a look: there is more to do
                self.busy_since = began
                return select(timeout)
            self.busy_since = 0.0
            self._polling_since = began
            events = select(timeout)
            self.busy_since = back = now()
            self._polling_since = 0.0
            polled = back - began
            if timeout is not None and polled - timeout >= threshold:
                # The kernel was done in time, but the interpreter, or a CPU, was not to be had.
                note_stall(began + timeout, back)
                polled = timeout
            self._polled += polled
            if events and self._wake is not None:
                self.rouse()
            return events

        def restore() -> None:
            if selector.__dict__.get("select") is timed_select:
                del selector.select

        selector.select = timed_select
        self._restore = restore

    def refresh(self, thread_cpu: Callable[[], float | None]) -> None:
        """Publish busy and idle seconds; ``thread_cpu`` reads the loop's thread's CPU clock."""
        if not self._attached:
            return
        now = self._now()
        elapsed = now - self._attached
        if self.has_selector:
            polling = self._polling_since
            idle = self._polled + (now - polling if polling else 0.0)
            self._publish(elapsed - idle, idle)
            return
        cpu = thread_cpu()
        if cpu is not None:
            busy = min(elapsed, cpu + self.blocked)
            self._publish(busy, elapsed - busy)

    def _publish(self, busy: float, idle: float) -> None:
        """Counters never go back, however the estimates are mended."""
        self._busy.set(max(self._busy.value, busy))
        self._idle.set(max(self._idle.value, idle))


def _caller() -> CodeType:
    """What called the caller. The name is private, the function documented."""
    return sys._getframe(2).f_code  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
