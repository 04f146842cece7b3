"""The event loop: how late it runs what is due, and how much of its time is taken.

A heartbeat, a timer on the loop itself, measures how late it runs. A loop that stands still for
500 ms is late once, but whatever had come in that time would have waited as well: so a late beat
also counts for each beat it swallowed, 500, 490, 480 ... ms (the correction for coordinated
omission), and the histogram's p99 is what a request arriving at random would have suffered.

Where the loop polls through a selector of Python's (asyncio), that selector is wrapped as well. It
knows exactly when the loop goes idle and when it comes back, so there each iteration's length is
known and nothing has to be inferred from late beats. uvloop polls in C, but can be asked when it
last came back from it (``sources.libuv``). If that was a while ago and the loop's thread is not
polling, the loop is held, exactly since then; when it ends is told by a callback that was posted
meanwhile. Of any other loop a late beat is all there is, half a beat less precise.

A loop that rests costs next to nothing: its beats are a second apart (waking an idle process takes
ten times the CPU that a beat takes in a busy one), and the watchdog sleeps until it is called. That
is not for those that are watched from outside as well: there a beat that fails to come is all there
is to see, and so it has to come soon.

What runs on the loop's thread does a fixed, small amount of work, also when a stall ends.
``sources.watchdog`` reads what is left behind from a thread of its own.
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
from contextlib import suppress
from math import inf
from types import CodeType
from typing import Any

from loopscope.core.histogram import Number
from loopscope.core.metric import STEP_BOUNDS, Metric
from loopscope.core.page import Page
from loopscope.core.stacks import frames_now
from loopscope.sources.evidence import polls_in_kernel
from loopscope.sources.libuv import last_poll
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

BEAT_DUE = Metric(
    "_eventloop_beat_due_seconds",
    "gauge",
    "When the loop's next beat is due, on the system's monotonic clock; 0 if none is.",
    ("loop",),
)
THREAD = Metric(
    "_eventloop_thread", "gauge", "The native id of the thread that runs the loop.", ("loop",)
)
"""For whoever reads the page from outside: a loop that does not come round cannot say so."""

Interval = tuple[float, float]
"""Two moments on the agent's clock: from when, until when."""

_MOST_ENDED = 256
"""Holds that wait for the watchdog to take them."""
_DOZING = 1.0
"""Seconds between the beats of a loop that rests."""
SEEN_FROM_OUTSIDE = 0.05
"""Seconds between the beats of one that is watched by another process, at most."""
_SAME = 0.003
"""Seconds: a loop that last polled as long after our own beat did nothing else since."""
_BUSY = 0.1
"""The share of CPU from which a loop is no idle one."""
_RUNS = frozenset(("run_forever", "run_until_complete"))
"""What the code calls that runs a loop, whatever ran it when it last beat."""
_EMPTY = contextvars.Context()


class LoopMonitor:
    """Heartbeat and, where possible, selector of one event loop.

    ``threshold`` seconds is how long a hold of the loop has to be to be put on ``ended``. Another
    process may rely on the beats of a loop that is ``seen_from_outside``, also while it rests.
    """

    def __init__(
        self,
        page: Page,
        now: Callable[[], float],
        threshold: float,
        *,
        seen_from_outside: bool = False,
    ) -> None:
        self.threshold = threshold
        self._patience = max(0.005, threshold / 2)
        self._brisk = max(threshold / 5, 0.005)
        self._calm = max(threshold / 2, 0.01)
        self._watchful = max(threshold * 0.8, 0.04)
        self._dozing = _DOZING
        if seen_from_outside:
            self._watchful = self._dozing = min(self._watchful, SEEN_FROM_OUTSIDE)
            self._calm = min(self._calm, SEEN_FROM_OUTSIDE)
            self._brisk = min(self._brisk, SEEN_FROM_OUTSIDE)
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
        self.is_exact = False
        """Whether the loop tells when it was held, so that nothing has to be estimated."""
        self.thread = 0
        self.native_id = 0
        self.blocked = 0.0
        """Seconds in stalls that its thread's CPU clock does not show; the watchdog's to add to."""
        self._now = now
        self._wakeups = WakeUps(now)
        self._slots = page.slots
        number = str(page.series_count)
        self._beat_due = Number(page.slots, page.allocate(BEAT_DUE, (number,)))
        self._beating = Number(page.slots, page.allocate(THREAD, (number,)))
        self._delays = page.allocate(DELAY)
        self._busy = Number(page.slots, page.allocate(TIME, ("busy",)))
        self._idle = Number(page.slots, page.allocate(TIME, ("idle",)))
        self.base: CodeType | None = None
        """The code that runs a loop whose own frames are not Python's."""
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self._cpu_before = 0.0
        self._last_poll: Callable[[], float] | None = None
        self._held_since = 0.0
        self._resting_since = 0.0
        self._beaten = 0.0
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
        self._beating.set(self.native_id)
        self.base = None
        self._wakeups.attach(loop)
        self._wrap_selector(getattr(loop, "_selector", None))
        self._last_poll = None if self.has_selector else last_poll(loop)
        self.is_exact = self.has_selector or self._last_poll is not None
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
        self.due = self.busy_since = self._held_since = self._resting_since = 0.0
        self._beat_due.set(0.0)
        self.base = None

    def abandon(self) -> None:
        """In a forked child: the slots are the parent's, whose loop goes on."""
        self._beat_due = self._beating = Number(memoryview(bytearray(8)).cast("d"), 0)
        self.detach()

    def is_running(self) -> bool:
        loop = self._loop()
        return loop is not None and loop.is_running()

    def stuck_since(self, now: float) -> float:
        """Since when the loop has not come round, as far as that can be seen; 0.0 if it has.

        From any thread but the loop's own.
        """
        due = self.due
        if self.has_selector:
            # A loop that polls although its beat is due wants the interpreter back.
            return self.busy_since or (due if due and now - due > self._brisk else 0.0)
        if self._last_poll is None:
            return due - self.interval / 2 if due and now > due else 0.0
        if not self._held_since:
            self._find_hold(now, self._last_poll)
        return self._held_since

    def resting(self, now: float) -> float:
        """For how long the loop has been polling, as far as that can be seen; 0.0 if it has not."""
        since = self._polling_since if self.has_selector else self._resting_since
        return max(0.0, now - since) if since else 0.0

    def _find_hold(self, now: float, read: Callable[[], float]) -> None:
        """Set since when a loop in C is held, and have it say when that is over."""
        loop, due = self._loop(), self.due
        if loop is None or not due:
            return
        polled = since = read()
        if now - polled < self._patience:
            if abs(polled - self._beaten) > _SAME:
                self._resting_since = 0.0
            return
        if polled == self._resting_since or self._is_polling():
            self._resting_since = polled
            if now - due <= self._brisk:
                return
            since = due  # it wants the interpreter, or a CPU
        self._held_since = since
        if read() == polled:
            self._ask(loop)
        else:  # it came round just now
            self._held_since = 0.0

    def _is_polling(self) -> bool:
        """Whether the thread of a loop in C waits for something to do.

        Under a frame of Python's it does not. Without one it may still be in a function of C's that
        was scheduled directly, or be waiting for the interpreter with something to do.
        """
        frame = frames_now().get(self.thread)
        code = None if frame is None else frame.f_code
        del frame
        is_outside = code is None or code is self.base or not _RUNS.isdisjoint(code.co_names)
        return is_outside and polls_in_kernel(self.native_id) is not False

    def _ask(self, loop: asyncio.AbstractEventLoop) -> None:
        """Have a loop in C say when it comes round. From any thread."""
        with suppress(RuntimeError):  # it was closed a moment ago
            loop.call_soon_threadsafe(self._answer, self._generation, context=_EMPTY)

    def _answer(self, generation: int) -> None:
        loop = self._loop()
        if generation != self._generation or loop is None:
            return
        self._beaten = now = self._now()
        self._came_round(now)
        if self._wake is None:
            self._hurry(loop)

    def _came_round(self, now: float) -> None:
        """A loop without a selector has come round: if it was held, that is over."""
        since, self._held_since = self._held_since, 0.0
        if since and now - since >= self.threshold:
            self._note_stall(since, now)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        cpu = time.thread_time()
        self.interval = interval = self._next_interval(cpu)
        self._cpu_before = cpu
        self.due = self._now() + interval
        self._beat_due.set(self.due)
        self._timer = loop.call_later(interval, self._beat, self._generation, context=_EMPTY)
        self._beaten = self._now()

    def _hurry(self, loop: asyncio.AbstractEventLoop) -> None:
        """Something happens after a rest: have the next beat sooner than was planned."""
        if self.interval == _DOZING and self._timer is not None:
            self._timer.cancel()
            self._schedule(loop)

    def _next_interval(self, cpu: float) -> float:
        """Few beats where the loop tells more, or is idle."""
        if self._wake is not None:
            return self._dozing
        if self.is_exact:
            return self._watchful
        return self._brisk if cpu - self._cpu_before >= _BUSY * self.interval else self._calm

    def doze(self, wake: Callable[[], None]) -> None:
        """The loop rests: let it beat slowly and, if it can, call ``wake`` as it comes back."""
        self._wake = wake

    def attend(self) -> None:
        """It does not any more, as the watchdog has seen."""
        if self._wake is None:
            return
        self._wake = None
        loop = self._loop()
        if loop is not None and not self.has_selector:
            self._ask(loop)

    def _rouse(self) -> None:
        """It comes back, and has something to do."""
        wake, self._wake = self._wake, None
        loop = self._loop()
        if wake is not None and loop is not None:
            wake()
            self._hurry(loop)

    def _beats_only(self) -> bool:
        """Whether a loop with timers of Python's has come back for nothing but our beat."""
        timers: Any = getattr(self._loop(), "_scheduled", None)
        if self._timer is None or not timers or timers[0] is not self._timer:
            return False
        soon = self._timer.when() + self._patience  # it is a heap: the next is one of two
        return all(timer.when() > soon for timer in timers[1:3])

    def _beat(self, generation: int) -> None:
        loop = self._loop()
        if generation != self._generation or loop is None:
            return  # detached in the meantime
        due = self.due
        if not self.has_selector:
            self.base = _caller()
        if due:
            now = self._now()
            late = max(0.0, now - due)
            self._count(late)
            self._wakeups.beat(late, now)
            if not self.has_selector:
                self._held_since = self._held_since or self._estimate(due)
                self._came_round(now)
        self._schedule(loop)

    def _estimate(self, due: float) -> float:
        """When a hold began of which nothing is known but that the beat was due in it."""
        return due if self._resting_since else due - min(self.interval, self._watchful) / 2

    def _note_stall(self, began: float, ended: float) -> None:
        self.latest_stall = (began, ended)
        self.ended.append(self.latest_stall)

    def _count(self, late: float) -> None:
        """Add one delay, and those of the beats it swallowed, without a loop over them.

        The beats a loop left out while it rested would have been no later than the one that came.
        """
        slots = self._slots
        base = self._delays
        interval = min(self.interval, self._watchful)
        if late <= interval:
            beats = max(1, round(self.interval / interval))
            slots[base + bisect_left(STEP_BOUNDS, late)] += beats
            slots[base + len(STEP_BOUNDS) + 1] += beats * late
            return
        beats = int(late / interval) + 1
        left = beats
        for number, bound in enumerate((*STEP_BOUNDS, inf)):
            if left and late - (left - 1) * interval <= bound:
                # Of late - k * interval (k = 0 ... left - 1), those that are at most this bound.
                above = 0 if bound >= late else min(left, int((late - bound) / interval) + 1)
                slots[base + number] += left - above
                left = above
        slots[base + len(STEP_BOUNDS) + 1] += beats * late - interval * beats * (beats - 1) / 2

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
            if self._wake is not None and (events or not self._beats_only()):
                self._rouse()
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
