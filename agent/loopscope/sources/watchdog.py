"""The watchdog: one thread that notices when an event loop does not come round, and looks why.

It wakes a few times per threshold and asks each loop's monitor since when that loop has been held.
From half the threshold on it takes samples of the loop's thread: often at first, then at growing
distances, so that a stall of an hour costs no more than one of a minute. When the loop comes round,
the loop itself says exactly when it was held (``LoopMonitor.ended``); the watchdog matches that
with its samples and with what the operating system knows, has the cause judged, and writes the
record.

A C call that keeps the GIL keeps it from the watchdog too. But the watchdog is waiting for it by
then, CPython hands the GIL over at the first instruction after the call, and the sample taken there
shows the very line. What it cannot do is speak while the GIL is held: that needs another process.

Frames are never kept: a sample is code objects and line numbers, and no file is read to take one.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, pairwise
from operator import itemgetter
from types import FrameType
from typing import NamedTuple, Protocol

from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.stacks import Stack, UserCode, take
from loopscope.core.stall import Stall
from loopscope.sources.cause import Evidence, Oversleep, Sample, Verdict, judge
from loopscope.sources.evidence import (
    Moment,
    ThreadClock,
    Witness,
    other_threads,
    waits_in_kernel,
)
from loopscope.sources.loop import Interval, LoopMonitor
from loopscope.sources.stalls import StallBook

NAME = "loopscope-watchdog"

_MOST_SAMPLES = 100
_MOST_STACKS = 20
_SHORT = 40
_THREADS_PERIOD = 0.5
_KERNEL_LOOKS = 3
_MOST_ROUNDS = 250
_MOST_HEALTHY = 16
_CALM = 8
_DOZE = 0.1
_NAP = 0.05
_IDLE = 0.002  # seconds of CPU that are too few to read anything anew for
_LONGEST_PAUSE = 0.25
_AFTERMATH = 0.01
_GROWTH = 1.3
_KEPT_SUSPICIONS = 4
_RUN = asyncio.Handle._run.__code__  # noqa: SLF001
_DEEPEST = 100
_NOBODY = frozenset(("starved", "suspended", "gc", "saturation", "gil_contention"))
"""Causes for which no line of the loop's own is to blame."""


class Running(NamedTuple):
    """Whose step a loop is running."""

    key: Hashable
    since: float
    """When the step began; 0.0 if that is not known."""
    route: str = ""
    method: str = ""
    task: str = ""
    trace_id: str = ""


class Waiting(Protocol):
    """A request in flight: when its latest step began, and when the one before that ended."""

    step_started: float
    suspended: float


class Watched(Protocol):
    """One event loop and what runs on it."""

    @property
    def monitor(self) -> LoopMonitor: ...

    def running(self) -> Running | None:
        """What is being run, as far as that is known."""

    def waiting(self) -> Sequence[Waiting]:
        """The requests in flight that are not being run."""
        ...

    def label_of(self, waiting: Waiting) -> tuple[str, str]:
        """Route and method of a request in flight."""
        ...


@dataclass(slots=True)
class _Look:
    """One sample."""

    at: float
    stack: Stack
    signature: Hashable
    running: Running | None
    moment: Moment
    waits: str | None


@dataclass(slots=True)
class _Suspicion:
    """A loop that has been held since ``since``, and what was seen of that."""

    since: float
    before: Moment
    threads: dict[int, float]
    waiting: list[tuple[Waiting, float]]
    looks: list[_Look] = field(default_factory=list[_Look])
    next_look: float = 0.0
    pause: float = 0.0
    id: str = ""

    def is_about(self, held: Interval, monitor: LoopMonitor) -> bool:
        """Whether this is what the loop later said of itself."""
        return abs(self.since - held[0]) <= monitor.interval and self.since < held[1]

    def is_due(self, now: float) -> bool:
        """Whether another sample should be taken."""
        return now >= self.next_look and len(self.looks) < _MOST_SAMPLES

    def add(self, look: _Look) -> None:
        """Keep a sample; the next one comes a little later each time."""
        self.looks.append(look)
        self.next_look = look.at + self.pause
        self.pause = min(self.pause * _GROWTH, _LONGEST_PAUSE)


class _Wake(NamedTuple):
    """What all threads were doing when the watchdog came back late."""

    at: float
    used: dict[int, float]
    """CPU seconds since the last look at all threads, a second or two before, by native id."""
    threads: dict[int, tuple[str, Stack]]
    """Name and stack, by native id."""


@dataclass(slots=True)
class _Eye:
    """What the watchdog keeps about one loop."""

    native_id: int
    witness: Witness
    healthy: deque[Moment]
    """The last snapshots in which nothing was wrong, oldest first."""
    latest: Moment
    rounds: deque[tuple[float, Oversleep]] = field(
        default_factory=lambda: deque[tuple[float, Oversleep]](maxlen=_MOST_ROUNDS)
    )
    """When we came back each time, and how late that was."""
    calm: int = 0
    """Looks in a row at which the loop had hardly run."""
    closing: deque[tuple[Interval, _Suspicion, Moment]] = field(
        default_factory=deque[tuple[Interval, "_Suspicion", Moment]]
    )
    """Stalls that are over, with the first snapshot since: who ran next shows a moment later."""
    suspicion: _Suspicion | None = None
    earlier: deque[_Suspicion] = field(
        default_factory=lambda: deque[_Suspicion](maxlen=_KEPT_SUSPICIONS)
    )


class Watchdog:
    """Watches the loops that ``watched`` lists, in a daemon thread.

    ``pauses`` lists the garbage collector's latest pauses with their thread; ``on_stall`` gets
    every finished record, on the watchdog's thread.
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
        worker: str = "",
    ) -> None:
        self._watched = watched
        self._clock = clock
        self._now = clock.now
        self._threshold = threshold
        self._tick = max(0.005, threshold / 2)
        self._book = book
        self._user_code = user_code
        self._pauses = pauses
        self._on_stall = on_stall
        self._faults = faults
        self._worker = worker
        self._eyes: dict[LoopMonitor, _Eye] = {}
        self._ids = count(1)
        self._slept_from = self._now()
        self._wakes: deque[_Wake] = deque(maxlen=4)
        self._threads_before: dict[int, float] = {}
        self._threads_read = 0.0
        self._thread: threading.Thread | None = None
        self._alarm = threading.Lock()  # released to wake the thread

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
                found.append(self._describe(suspicion, since, now))
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
        is_late = now - self._slept_from - pause >= self._threshold / 4
        # First what needs nothing but the GIL, which may be gone after the first system call.
        if is_late:
            self._note_threads(now)
        shortest = _DOZE
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
        self._slept_from = self._now()
        return shortest

    def _note_threads(self, now: float) -> None:
        """We came back late: keep what every thread was doing, for one may have kept us away."""
        threads = _threads()
        used: dict[int, float] = {}
        for native_id in threads.keys() - {threading.get_native_id()}:
            cpu = ThreadClock(0, native_id).cpu() or 0.0  # costs no GIL, unlike other_threads()
            used[native_id] = max(0.0, cpu - self._threads_before.get(native_id, 0.0))
        self._wakes.append(_Wake(now, used, threads))

    def _wake_within(self, began: float, ended: float) -> _Wake | None:
        return next((w for w in reversed(self._wakes) if began < w.at <= ended + self._tick), None)

    def _thief(self, wake: _Wake | None, verdict: Verdict) -> dict[str, str]:
        """The thread that held the interpreter, by name, and the line it was seen at after that."""
        native_id = verdict.facts.get("thread")
        if wake is None or native_id is None:
            return {}  # naming nobody is better than naming the wrong one
        name, stack = wake.threads.get(int(native_id), ("", ()))
        return {"thread_name": name, "thread_location": self._user_code.location(stack)}

    def _look_at(self, watched: Watched, now: float, slept: float) -> float:
        monitor = watched.monitor
        eye = self._eye(monitor)
        since = monitor.stuck_since(now)
        suspicion = eye.suspicion
        if suspicion is not None and suspicion.since != since:
            eye.earlier.append(suspicion)
            eye.suspicion = suspicion = None
        is_suspect = bool(since) and now - since >= self._threshold / 2
        look: _Look | None = None
        if is_suspect and (suspicion is None or suspicion.is_due(now)):
            # before anything else lets go of the GIL
            looks = 0 if suspicion is None else len(suspicion.looks)
            look = self._take(watched, eye, now, with_kernel=looks < _KERNEL_LOOKS)
        if is_suspect and suspicion is None:
            suspicion = eye.suspicion = self._suspect(watched, eye, since)
        if suspicion is not None and look is not None:
            suspicion.add(look)
        moment = self._read_books(eye, is_suspect=is_suspect, has_news=bool(monitor.ended))
        eye.rounds.append((moment.at, Oversleep.between(eye.latest, moment, slept)))
        eye.latest = moment
        while eye.closing and now - eye.closing[0][0][1] >= _AFTERMATH:
            self._close(watched, eye, *eye.closing.popleft())
            eye.latest = eye.witness.snapshot()
        while monitor.ended:
            held = monitor.ended.popleft()
            seen = next(
                (s for s in [*eye.earlier, suspicion] if s and s.is_about(held, monitor)), None
            )
            if seen is None:  # the GIL was held to its end, and the loop was first to have it back
                seen = self._suspect(watched, eye, held[0])
            end = eye.witness.snapshot() if moment.cpu is None else moment
            eye.closing.append((held, seen, end))
        if not is_suspect:
            eye.calm = eye.calm + 1 if moment.cpu == eye.healthy[-1].cpu else 0
            if self._now() - moment.at < self._threshold / 4:  # else its figures are of two times
                eye.healthy.append(moment)
            if eye.closing:
                return min(self._tick, _AFTERMATH)
            if eye.calm < _CALM:
                monitor.rouse()
                return self._tick
            monitor.doze(self._wake)
            return max(_DOZE if monitor.has_selector else _NAP, self._tick)
        assert suspicion is not None
        return min(self._tick, max(0.002, suspicion.next_look - now))

    def _read_books(self, eye: _Eye, *, is_suspect: bool, has_news: bool) -> Moment:
        """A snapshot where it matters; where nothing has happened the last one is still true."""
        if has_news:
            return eye.witness.snapshot()
        if is_suspect:
            return eye.witness.own()
        last = eye.healthy[-1]
        cpu = eye.witness.cpu()
        if last.cpu is None or cpu is None or cpu - last.cpu >= _IDLE:
            return eye.witness.snapshot()
        return replace(last, at=self._now(), own_switches=eye.witness.own_switches())

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

    def _suspect(self, watched: Watched, eye: _Eye, since: float) -> _Suspicion:
        waiting = [(each, each.suspended) for each in watched.waiting()]  # before the GIL may go
        return _Suspicion(
            since,
            next((each for each in reversed(eye.healthy) if each.at <= since), eye.healthy[0]),
            other_threads(eye.native_id),
            waiting,
            pause=self._tick / 3,
            id=f"{self._worker}-{next(self._ids)}".lstrip("-"),
        )

    def _take(self, watched: Watched, eye: _Eye, now: float, *, with_kernel: bool) -> _Look:
        monitor = watched.monitor
        frame = _frames().get(monitor.thread)
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
        return _Look(now, stack, signature, running, moment, waits)

    def _close(
        self, watched: Watched, eye: _Eye, held: Interval, suspicion: _Suspicion, end: Moment
    ) -> None:
        """Make the record of a stall that is over."""
        began, ended = held
        began = self._true_beginning(watched.monitor, suspicion, began)
        stall = self._describe(suspicion, began, ended)
        stall.in_progress = False
        stall.is_estimate = not watched.monitor.has_selector
        verdict = judge(self._evidence(watched, eye, suspicion, began, ended, end))
        stall.cause = verdict.cause
        stall.evidence = verdict.facts
        if verdict.cause in _NOBODY or not _agree(
            suspicion, verdict, self._user_code, stall.duration_s
        ):
            stall.location = stall.label = ""
        if verdict.cause == "gil_contention":
            wake = self._wake_within(began, ended)
            stall.evidence = {**verdict.facts, **self._thief(wake, verdict)}
        self._find_victims(stall, watched, suspicion, ended)
        used = (end.cpu or 0.0) - (suspicion.before.cpu or 0.0)
        watched.monitor.blocked += max(0.0, ended - began - used)
        self._book.add(stall)
        self._on_stall(stall)

    def _true_beginning(
        self, monitor: LoopMonitor, suspicion: _Suspicion, estimate: float
    ) -> float:
        """Where only beats are known, the step that was seen running says when it began."""
        if monitor.has_selector:
            return estimate
        steps = {look.running.since for look in suspicion.looks if look.running is not None}
        since = steps.pop() if len(steps) == 1 else 0.0
        return since if abs(since - estimate) <= monitor.interval else estimate

    def _describe(self, suspicion: _Suspicion, began: float, ended: float) -> Stall:
        """What is known without a judgement: where the time went, and who was running."""
        shares = _shares(suspicion.looks, began, ended)
        stall = Stall(
            suspicion.id,
            self._clock.wall(began),
            ended - began,
            worker=self._worker,
            in_progress=True,
        )
        by_place: dict[str, float] = defaultdict(float)
        stacks: dict[tuple[str, ...], float] = defaultdict(float)
        runners: dict[Running, float] = defaultdict(float)
        for look, seconds in shares:
            by_place[self._user_code.location(look.stack)] += seconds
            stacks[self._user_code.described(look.stack)] += seconds
            if look.running is not None:
                runners[look.running] += seconds
        stall.stacks = tuple(sorted(stacks.items(), key=itemgetter(1), reverse=True)[:_MOST_STACKS])
        if shares:
            stall.location = max(by_place, key=by_place.__getitem__)
            chosen = next(
                look for look, _ in shares if self._user_code.location(look.stack) == stall.location
            )
            stall.label = self._user_code.label(chosen.stack)
            stall.leaf = self._user_code.leaf(chosen.stack)
            if chosen.running is not None and chosen.stack and chosen.stack[-1][0] is _RUN:
                stall.leaf = chosen.running.task  # C code, called by the loop itself
        if runners:
            runner = max(runners, key=runners.__getitem__)
            stall.route, stall.method = runner.route, runner.method
            stall.task, stall.trace_id = runner.task, runner.trace_id
        return stall

    def _evidence(
        self,
        watched: Watched,
        eye: _Eye,
        suspicion: _Suspicion,
        began: float,
        ended: float,
        end: Moment,
    ) -> Evidence:
        collecting = sum(
            max(0.0, min(until, ended) - max(since, began))
            for since, until, thread in self._pauses()
            if thread == watched.monitor.thread
        )
        start = suspicion.before
        looks = suspicion.looks
        if len(looks) > 1 and looks[-1].at - looks[0].at >= (ended - began) / 2:
            # What came before and after was somebody else's.
            start, end = looks[0].moment, looks[-1].moment
        if end.at - start.at < (ended - began) / 2:  # we had only just begun to look
            start, end = Moment(began), Moment(ended)
        return Evidence(
            duration_s=ended - began,
            start=start,
            end=end,
            rounds=[late for at, late in eye.rounds if at >= began and at - late.seconds <= ended],
            gc_s=collecting,
            samples=[
                Sample(look.at - began, look.signature, look.stack, look.waits)
                for look in suspicion.looks
            ],
            others=self._others(eye, suspicion, began, ended),
            switch_interval_s=sys.getswitchinterval(),
        )

    def _others(
        self, eye: _Eye, suspicion: _Suspicion, began: float, ended: float
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

    def _find_victims(
        self, stall: Stall, watched: Watched, suspicion: _Suspicion, ended: float
    ) -> None:
        """Requests that had been asleep and ran as soon as the loop came round."""
        began = ended - stall.duration_s
        victims: dict[str, tuple[int, float]] = {}
        waits: dict[tuple[str, str], float] = defaultdict(float)
        for each, suspended in suspicion.waiting:
            if suspended < ended <= each.step_started:
                route, method = watched.label_of(each)
                lost = ended - max(began, suspended)
                requests, seconds = victims.get(route, (0, 0.0))
                victims[route] = (requests + 1, seconds + lost)
                waits[route, method] += lost
        stall.victims = victims
        stall.waits = dict(waits)


def _shares(looks: Sequence[_Look], began: float, ended: float) -> list[tuple[_Look, float]]:
    """Each sample with the seconds it stands for: from halfway to the one before to halfway on."""
    if not looks:
        return []
    middles = [(a.at + b.at) / 2 for a, b in pairwise(looks)]
    edges = [began, *middles, ended]
    return [(look, max(0.0, b - a)) for look, (a, b) in zip(looks, pairwise(edges), strict=True)]


def _frames() -> dict[int, FrameType]:
    """Every thread's innermost frame. The name is private, the function documented."""
    return sys._current_frames()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


def _threads() -> dict[int, tuple[str, Stack]]:
    """Name and stack of every thread of Python's, by native id."""
    frames = _frames()
    try:
        return {
            thread.native_id: (thread.name, take(frames.get(thread.ident or 0), limit=_SHORT))
            for thread in threading.enumerate()
            if thread.native_id is not None
        }
    finally:
        frames.clear()


def _agree(suspicion: _Suspicion, verdict: Verdict, user_code: UserCode, duration: float) -> bool:
    """Whether the samples may accuse a line: one will do where the cause is certain, else two."""
    if verdict.cause == "unknown" or not suspicion.looks:
        return False
    labels = [user_code.label(look.stack) for look in suspicion.looks]
    most = max(labels.count(label) for label in labels)
    # While C code kept the interpreter to itself there was nothing else that could be seen.
    was_alone = float(verdict.facts.get("gil_held_s", 0.0)) >= duration / 2
    return 2 * most > len(labels) and (verdict.confident or most > 1 or was_alone)


def _handle(frame: FrameType | None) -> asyncio.Handle | None:
    """The handle an asyncio loop is running; None where the loop's frames are not Python's."""
    for _ in range(_DEEPEST):
        if frame is None:
            break
        if frame.f_code is _RUN:
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
