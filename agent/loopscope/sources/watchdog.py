"""The watchdog: one thread that notices when an event loop does not come round, and looks why.

It wakes twice per threshold and asks each loop's monitor since when that loop has been held; while
loops rest it sleeps until one of them calls. From half the threshold on it takes samples of the
loop's thread: often at first, then at growing distances, so that a stall of an hour costs no more
than one of a minute. When the loop comes round, the loop itself says exactly when it was held
(``LoopMonitor.ended``); the watchdog matches that with its samples and with what the operating
system knows, and has the record made of it (``sources.postmortem``).

A C call that keeps the GIL keeps it from the watchdog too. But the watchdog is waiting for it by
then, CPython hands the GIL over at the first instruction after the call, and the sample taken there
shows the very line. What it cannot do is speak while the GIL is held: that needs another process.

Frames are never kept: a sample is code objects and line numbers, and no file is read to take one.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice
from types import FrameType

from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.stacks import Stack, UserCode, frames_now, take
from loopscope.core.stall import Stall
from loopscope.sources.cause import LoopRound, Oversleep
from loopscope.sources.evidence import (
    Moment,
    ThreadClock,
    Witness,
    other_threads,
    waits_in_kernel,
)
from loopscope.sources.loop import Interval, LoopMonitor
from loopscope.sources.postmortem import HANDLE_RUN, Books, Postmortem, Round, runs_per_second
from loopscope.sources.stalls import StallBook
from loopscope.sources.suspicion import Look, Running, Suspicion, Wake, Watched

NAME = "loopscope-watchdog"

_SHORT = 40
"""Frames of other threads' stacks."""
_THREADS_PERIOD = 1.0
"""Seconds between two readings of all threads' clocks while all is well."""
_KERNEL_LOOKS = 3
"""Samples of a stall for which the kernel is asked as well; that may cost us the GIL."""
_MOST_ROUNDS = 250
_MOST_HEALTHY = 16
_KEPT_SUSPICIONS = 4
_RESTING = 1.0
"""Seconds between looks at a loop that calls us when it comes back from polling."""
_NOBODY_THERE = 0.1
"""Seconds between looks for a loop that runs, while none does."""
_GLANCES = 10
"""Looks in a row at a loop that rests for which no books are read."""
_IDLE = 0.002
"""Seconds of CPU that are too few to read anything anew for."""
_AFTERMATH = 0.01
"""Seconds after a stall until it is plain who ran next."""
_FIRST_PAUSE = 0.1
"""Of a threshold: the pause between the first two samples."""
_SHORTEST = 0.002
_DEEPEST = 100


@dataclass(slots=True)
class _Eye:
    """What the watchdog keeps about one loop."""

    native_id: int
    witness: Witness
    healthy: deque[Moment]
    """The last readings when nothing was wrong, oldest first."""
    latest: Moment
    rounds: deque[Round] = field(default_factory=lambda: deque[Round](maxlen=_MOST_ROUNDS))
    glances: int = 0
    """Looks since the latest books at which there was nothing to read in them."""
    closing: deque[tuple[Interval, Suspicion, Moment]] = field(
        default_factory=deque[tuple[Interval, Suspicion, Moment]]
    )
    """Stalls that are over, with the first snapshot since: who ran next shows a moment later."""
    suspicion: Suspicion | None = None
    earlier: deque[Suspicion] = field(
        default_factory=lambda: deque[Suspicion](maxlen=_KEPT_SUSPICIONS)
    )


class Watchdog:
    """Watches the loops that ``watched`` lists, in a daemon thread.

    ``pauses`` lists the garbage collector's latest pauses with their thread. ``on_stall`` gets
    every finished record, on the watchdog's thread, and ``on_hold`` the record so far of a stall
    that goes on, now and then, for it may never be finished. ``errand`` is what has to be done
    about once a second; it is left for later while a loop is held.
    """

    def __init__(
        self,
        watched: Callable[[], Iterable[Watched]],
        clock: Clock,
        threshold: float,
        *,
        book: StallBook,
        user_code: UserCode,
        pauses: Callable[[], Iterable[tuple[float, float, int]]],
        on_stall: Callable[[Stall], None],
        faults: Faults,
        on_hold: Callable[[Stall], None] = lambda _: None,
        errand: Callable[[], None] = lambda: None,
        worker: str = "",
    ) -> None:
        self._watched = watched
        self._now = clock.now
        self._threshold = threshold
        self._tick = max(0.005, threshold / 2)
        self._book = book
        self._postmortem = Postmortem(clock, user_code, pauses, worker)
        self._on_stall = on_stall
        self._faults = faults
        self._on_hold = on_hold
        self._errand = errand
        self._worker = worker
        self._eyes: dict[LoopMonitor, _Eye] = {}
        self._ids = count(1)
        self._slept_from = self._now()
        self._called_at = 0.0
        self._wakes: deque[Wake] = deque(maxlen=4)
        self._threads_before: dict[int, float] = {}
        self._threads_read = 0.0
        self._thread: threading.Thread | None = None
        self._alarm = threading.Lock()  # released to wake the thread
        self.spent = 0.0
        """Seconds of CPU time that the thread had taken about a second ago, errands included."""

    def start(self) -> None:
        """Start watching."""
        self._alarm.acquire()
        self._thread = threading.Thread(target=self._run, name=NAME, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        self._wake()
        if thread is not threading.current_thread():
            thread.join(timeout=5.0)

    def _wake(self) -> None:
        """End the watchdog's sleep, from any thread."""
        self._called_at = self._now()
        with suppress(RuntimeError):  # it is awake
            self._alarm.release()

    def abandon(self) -> None:
        """In a forked child: the thread is the parent's and does not exist here."""
        self._thread = None

    def in_progress(self) -> list[Stall]:
        """Stalls that have not ended. From any thread; the cause is not judged before the end."""
        now = self._now()
        found: list[Stall] = []
        for monitor, eye in list(self._eyes.items()):
            suspicion = eye.suspicion
            since = monitor.stuck_since(now)
            held = now - since
            if suspicion is not None and since == suspicion.since and held >= self._threshold:
                found.append(self._postmortem.describe(suspicion, since, now))
        return found

    def held_by_now(self) -> float:
        """Seconds of the longest stall in progress; 0.0 if there is none. From any thread."""
        now = self._now()
        held = 0.0
        for watched in self._watched():
            since = watched.monitor.stuck_since(now) if watched.monitor.is_running() else 0.0
            if since and now - since >= self._threshold:
                held = max(held, now - since)
        return held

    def refresh(self) -> None:
        """Publish what is read on demand: the stall in progress, and each loop's time."""
        self._book.show_progress(self.held_by_now())
        for watched in self._watched():
            monitor = watched.monitor
            monitor.refresh(ThreadClock(monitor.thread, monitor.native_id).cpu)

    def _run(self) -> None:
        pause = self._tick
        while True:
            self._alarm.acquire(timeout=pause)
            if self._thread is None:
                break
            try:
                pause = self._look_around(pause)
            except Exception as error:
                self._faults.report("stalls", error)
                if self._faults.is_off("stalls"):
                    break
        for eye in self._eyes.values():
            eye.witness.close()
        self._eyes.clear()

    def _look_around(self, pause: float) -> float:
        """Look at every loop; the seconds until the next look are returned."""
        now = self._now()
        if self._called_at > self._slept_from:  # we were called before our time
            pause = min(pause, self._called_at - self._slept_from)
        # First what needs nothing but the GIL, which may be gone after the first system call.
        if now - self._slept_from - pause >= self._threshold / 4:
            self._note_threads(now)
        shortest = _RESTING
        alive: set[LoopMonitor] = set()
        for watched in self._watched():
            monitor = watched.monitor
            if not monitor.is_running():
                monitor.forget()
                continue
            alive.add(monitor)
            shortest = min(shortest, self._look_at(watched, now, pause))
        for gone in self._eyes.keys() - alive:
            self._eyes.pop(gone).witness.close()
        if shortest >= self._tick and now - self._threads_read >= _THREADS_PERIOD:
            self._threads_before, self._threads_read = other_threads(), now
            self._errand()
            self.spent = time.thread_time()
        self._slept_from = self._now()
        return shortest if alive else _NOBODY_THERE

    def _look_at(self, watched: Watched, now: float, slept: float) -> float:
        """Look at one loop; the seconds until that should be done again are returned."""
        eye = self._eye(watched.monitor)
        if self._still_rests(watched.monitor, eye, now):
            eye.glances += 1
            return self._rest(watched.monitor, now)
        look = self._watch(watched, eye, now)  # before anything else lets go of the GIL
        is_held = eye.suspicion is not None
        moment = self._read_books(eye, is_held=is_held, has_news=bool(watched.monitor.ended))
        late = self._oversleep(eye, moment, slept)
        eye.rounds.append(Round(moment.at, late, LoopRound.between(eye.latest, moment)))
        eye.latest = moment
        if look is not None and eye.suspicion is not None:
            look.late = late
            eye.suspicion.add(look)
            if eye.suspicion.is_time_to_tell(now):
                suspicion = eye.suspicion
                self._on_hold(self._postmortem.describe(suspicion, suspicion.since, now))
        if not is_held:
            self._infer_wait(watched.monitor, eye)
        self._close_ended(watched, eye, now, moment)
        if eye.suspicion is not None:
            return min(self._tick, max(_SHORTEST, eye.suspicion.next_look - now))
        if self._now() - moment.at < self._threshold / 4:  # else its figures are of two times
            eye.healthy.append(moment)
        return min(self._rest(watched.monitor, now), _AFTERMATH if eye.closing else _RESTING)

    def _still_rests(self, monitor: LoopMonitor, eye: _Eye, now: float) -> bool:
        """Whether there is nothing to see: the one case that has to be cheap."""
        return (
            eye.glances < _GLANCES
            and not monitor.stuck_since(now)
            and monitor.resting(now) >= self._threshold
            and eye.suspicion is None
            and not eye.closing
            and not monitor.ended
        )

    def _oversleep(self, eye: _Eye, moment: Moment, slept: float) -> Oversleep:
        """How late we came back this time; the rounds that were but a glance were on time."""
        glances, eye.glances = eye.glances, 0
        if not glances:
            return Oversleep.between(eye.latest, moment, slept)
        late = Oversleep.between(eye.latest, moment, self._slept_from + slept - eye.latest.at)
        if late.switches is None:
            return late
        return late._replace(switches=max(0, late.switches - glances))

    def _infer_wait(self, monitor: LoopMonitor, eye: _Eye) -> None:
        """Note a hold that nobody saw: another thread had the GIL, and the loop got it before us.

        A loop without a selector that rested has no beat that came late, and polls again by now. It
        is known by how often it woke up to ask for the GIL while we were doing the same.
        """
        at, late, loop = eye.rounds[-1]
        interval = sys.getswitchinterval()
        kept = late.gil_wait(interval)
        is_told = monitor.has_selector or monitor.ended or eye.closing
        if is_told or kept < self._threshold or loop is None or loop.cpu >= kept / 2:
            return
        usual = runs_per_second(each.loop for each in islice(eye.rounds, len(eye.rounds) - 1))
        runs = loop.runs - usual * max(0.0, loop.lasted - late.seconds)
        waited = min(kept, runs * interval)
        if waited >= max(self._threshold, kept / 2):
            monitor.ended.append((at - waited, at))

    def _watch(self, watched: Watched, eye: _Eye, now: float) -> Look | None:
        """Keep the suspicion up to date, and take a sample if one is due."""
        since = watched.monitor.stuck_since(now)
        suspicion = eye.suspicion
        if suspicion is not None and suspicion.since != since:
            eye.earlier.append(suspicion)
            eye.suspicion = suspicion = None
        if not since or now - since < self._threshold / 2:
            return None
        look: Look | None = None
        if suspicion is None or suspicion.is_due(now):
            looks = 0 if suspicion is None else len(suspicion.looks)
            look = self._take(watched, eye, now, with_kernel=looks < _KERNEL_LOOKS)
        if suspicion is None:
            eye.suspicion = self._suspect(watched, eye, since)
        return look

    def _close_ended(self, watched: Watched, eye: _Eye, now: float, moment: Moment) -> None:
        """Make records of the stalls that ended a moment ago, and take in those that ended now."""
        monitor = watched.monitor
        while eye.closing and now - eye.closing[0][0][1] >= _AFTERMATH:
            self._close(watched, eye, *eye.closing.popleft())
            eye.latest = eye.witness.brief()
        while monitor.ended:
            held = monitor.ended.popleft()
            latest = [] if eye.suspicion is None else [eye.suspicion]
            candidates = [*latest, *reversed(eye.earlier)]
            seen = next((each for each in candidates if each.is_about(held, monitor)), None)
            if seen is None:  # the GIL was held to its end, and the loop was first to have it back
                seen = self._suspect(watched, eye, held[0])
            eye.closing.append((held, seen, moment))

    def _rest(self, monitor: LoopMonitor, now: float) -> float:
        """How long a loop that is not held can be left alone."""
        if monitor.resting(now) >= self._tick / 2:
            monitor.doze(self._wake)
            if monitor.resting(now):  # it may have come back just before
                return _RESTING if monitor.has_selector else max(self._tick, self._threshold)
        monitor.attend()
        return self._tick

    def _read_books(self, eye: _Eye, *, is_held: bool, has_news: bool) -> Moment:
        """A snapshot where it matters; where little has happened, the last one is still true."""
        if has_news:
            return eye.witness.snapshot()
        brief = eye.witness.brief()
        last = eye.healthy[-1]
        if is_held:
            return brief
        if last.cpu is None or brief.cpu is None or brief.cpu - last.cpu >= _IDLE:
            return eye.witness.snapshot()
        return replace(
            brief,
            state=last.state,
            major_faults=last.major_faults,
            throttled=last.throttled,
            suspended=last.suspended,
        )

    def _note_threads(self, now: float) -> None:
        """We came back late: keep what every thread was doing, for one may have kept us away."""
        threads = _threads()
        used: dict[int, float] = {}
        for native_id in threads.keys() - {threading.get_native_id()}:
            cpu = ThreadClock(0, native_id).cpu() or 0.0  # costs no GIL, unlike other_threads()
            used[native_id] = max(0.0, cpu - self._threads_before.get(native_id, 0.0))
        self._wakes.append(Wake(now, used, threads))

    def _wake_within(self, began: float, ended: float) -> Wake | None:
        return next((w for w in reversed(self._wakes) if began < w.at <= ended + self._tick), None)

    def _eye(self, monitor: LoopMonitor) -> _Eye:
        eye = self._eyes.get(monitor)
        if eye is None or eye.native_id != monitor.native_id:
            if eye is not None:
                eye.witness.close()
            witness = Witness(monitor.thread, monitor.native_id)
            moment = witness.snapshot()
            eye = self._eyes[monitor] = _Eye(
                monitor.native_id, witness, deque((moment,), maxlen=_MOST_HEALTHY), moment
            )
        return eye

    def _suspect(self, watched: Watched, eye: _Eye, since: float) -> Suspicion:
        waiting = [(each, each.suspended) for each in watched.waiting()]  # before the GIL may go
        return Suspicion(
            since,
            next((each for each in reversed(eye.healthy) if each.at <= since), eye.healthy[0]),
            other_threads(eye.native_id),
            waiting,
            pause=_FIRST_PAUSE * self._threshold,
            id=f"{self._worker}-{next(self._ids)}".lstrip("-"),
        )

    def _take(self, watched: Watched, eye: _Eye, now: float, *, with_kernel: bool) -> Look:
        monitor = watched.monitor
        frame = frames_now().get(monitor.thread)
        try:
            stack = take(frame, base=monitor.base)
            handle = _handle(frame)
        finally:
            del frame
        running = watched.running()
        if running is None and handle is not None:
            running = Running(id(handle), 0.0, task=_callback_name(handle))
        signature = running.key if running is not None else _outermost(stack)
        moment = eye.witness.snapshot()
        waits = waits_in_kernel(monitor.native_id) if with_kernel else None
        return Look(now, stack, signature, running, moment, waits)

    def _close(
        self, watched: Watched, eye: _Eye, held: Interval, suspicion: Suspicion, end: Moment
    ) -> None:
        """Make the record of a stall that is over."""
        began, ended = held
        others = self._others(eye, suspicion, began, ended)
        books = Books(tuple(eye.rounds), end, others, self._wake_within(began, ended))
        stall = self._postmortem.conclude(watched, suspicion, held, books)
        used = (end.cpu or 0.0) - (suspicion.before.cpu or 0.0)
        watched.monitor.blocked += max(0.0, ended - began - used)
        self._book.add(stall)
        self._on_stall(stall)

    def _others(
        self, eye: _Eye, suspicion: Suspicion, began: float, ended: float
    ) -> dict[int, float]:
        """CPU seconds of the other threads during a stall."""
        wake = self._wake_within(began, ended)
        if wake is not None:  # before anybody had time to end
            return {each: cpu for each, cpu in wake.used.items() if each != eye.native_id}
        return {
            thread: cpu - suspicion.threads[thread]
            for thread, cpu in other_threads(eye.native_id).items()
            if thread in suspicion.threads
        }


def _threads() -> dict[int, tuple[str, Stack]]:
    """Name and stack of every thread of Python's, by native id."""
    frames = frames_now()
    try:
        return {
            thread.native_id: (thread.name, take(frames.get(thread.ident or 0), limit=_SHORT))
            for thread in threading.enumerate()
            if thread.native_id is not None
        }
    finally:
        frames.clear()


def _handle(frame: FrameType | None) -> asyncio.Handle | None:
    """The handle an asyncio loop is running; None where the loop's frames are not Python's."""
    for _ in range(_DEEPEST):
        if frame is None:
            break
        if frame.f_code is HANDLE_RUN:
            handle: object = frame.f_locals.get("self")
            return handle if isinstance(handle, asyncio.Handle) else None
        frame = frame.f_back
    return None


def _callback_name(handle: asyncio.Handle) -> str:
    """What a handle calls, if it is no task's step."""
    callback: object = getattr(handle, "_callback", None)
    while isinstance(callback, partial):
        callback = callback.func
    name = getattr(callback, "__qualname__", "")
    module = getattr(callback, "__module__", None) or ""
    return f"{module}.{name}".strip(".")


def _outermost(stack: Stack) -> Hashable:
    """What tells callbacks apart where neither task nor handle can be seen: the first frame."""
    return (stack[0][0].co_filename, stack[0][0].co_qualname) if stack else ""
