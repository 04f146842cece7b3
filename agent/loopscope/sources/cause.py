"""Why a loop stood still, judged from what was read before, during and after. Pure; no I/O.

Each cause is a rule: a function that looks at one case and says that it does not hold (None), holds
but is not sure (False), or holds (True). The first that holds is the verdict; their order is that
of ``_RULES``. First come those that accuse no line (``suspended``, ``starved``), then those where
the line is a victim as well (``gc``, ``gil_contention``, ``saturation``), then the others.

Three books are compared. The loop thread's own (CPU used, time spent waiting for a CPU, times put
on a CPU) say whether it ran, was kept from running, slept, or kept asking for the GIL: whoever
wants the GIL wakes up every switch interval. The watchdog's own say whether the GIL was free: if
it came back late although it had asked for the GIL all the time, the GIL was held; if it came back
late having asked for nothing, the process was not there (measured, see
``loopscope.sources.evidence``); if nearly all its rounds were a little late, the GIL was in demand.
Where both were read in each round, only the loop's requests in the late ones count: in the others
it woke up for reasons of its own. The samples say where the loop was.

Hence "a worker burns CPU in C without the GIL while the loop sleeps" is the loop's blocking call
(the watchdog was on time), "a worker holds the GIL while the loop sleeps" too (the loop asked for
nothing), and only "a worker holds the GIL and the loop keeps asking for it" is contention.

What cannot be told apart, and what is said then:

* A SIGSTOP from a frozen cgroup or a virtual machine that was paused: all ``suspended``.
* Which of two busy threads held the GIL: the busier one is named, without confidence.
* A loop that polls every few milliseconds while others trade the GIL, from one that only wants the
  GIL: ``gil_contention``, wrongly. It was late for both reasons.
* A lock in C code from a condition variable, or from another library's wait for its own threads:
  the kernel calls each a futex, so each is a ``lock``.
* A lock waited for by C code that keeps the GIL from any other blocking call: ``blocking_call``.
* Who held the GIL, if that thread has ended since: ``gil_contention`` without a name.
* Many calls of one callback from a long one, where the loop's own frames are not Python's (uvloop)
  and no task runs: ``cpu``, in the function that was seen.
* Half a stall of one kind and half of another: the larger half, without confidence.
* Without the kernel's books (macOS; sandboxes) CPU and blocking: ``unknown``.

A judgement takes up to 3 ms for 40 samples, 30 frames deep: it belongs after the stall.
"""

from __future__ import annotations

import dis
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePath
from types import CodeType
from typing import Literal, NamedTuple

from loopscope.core.stacks import Stack
from loopscope.sources.evidence import Moment

Cause = Literal[
    "blocking_call", "cpu", "lock", "gc", "import", "gil_contention", "saturation", "starved",
    "suspended", "unknown",
]  # fmt: skip

_MOST = 0.5  # the share of a stall that makes a cause the cause
_STILL = 0.4  # the share of CPU below which a thread is said to have stood still
_HOLDS = 0.6  # the share of the loop's wait a thread must have run to be named as the GIL's holder
_NOTABLE = 0.25  # the share of interference above which nothing else is certain
_ASKING = 0.3  # GIL requests in a wait, per switch interval, that show it was a wait for the GIL
_DISTINCT = 6  # switch intervals a wait must last for the number of requests to mean something
_WAITED = 2  # switch intervals after which a thread that computes in Python has given the GIL away
_BUSY = 1 / 3  # a round's average lateness, in switch intervals, that shows the GIL was in demand
_FAULTS = 20  # waits for a disk that may well explain a call that is quick as a rule
_ASLEEP = 0.01  # seconds; the two clocks compared are read a moment apart
_SEVERAL, _MANY = 3, 5  # samples that may, and that do, show there was no single culprit

_LIBRARY = PurePath(threading.__file__).parent
_LOCKS = tuple(
    str(_LIBRARY / place) for place in ("threading.py", "queue.py", "concurrent/futures/_base.py")
)
_DEBUGGERS = (str(_LIBRARY / "pdb.py"), str(_LIBRARY / "bdb.py"))
_DEBUGGER_PACKAGES = frozenset({"debugpy", "pydevd", "_pydevd_bundle", "_pydevd_frame_eval"})
_LOOPS = tuple(
    str(_LIBRARY / "asyncio" / place) for place in ("events.py", "base_events.py", "runners.py")
)
_IMPORT = "<frozen importlib._bootstrap"


class Sample(NamedTuple):
    """What the loop thread was doing at one moment of the stall."""

    age_s: float
    """Seconds since the stall began."""
    signature: Hashable
    """Which callback or step was running."""
    stack: Stack
    waits: str | None = None
    """What ``waits_in_kernel`` said."""


class Oversleep(NamedTuple):
    """How much longer than it meant to a round of the watchdog took: a sleep, a look around."""

    seconds: float
    """Its own work left out."""
    switches: int | None = None
    """Times it gave up the CPU meanwhile, its sleep's own left out: mostly requests for the GIL."""
    run_wait: float | None = None
    """For how long of it the watchdog merely waited for a CPU, in seconds."""

    @property
    def kept_away(self) -> float:
        """Seconds it was late for other reasons than waiting for a CPU."""
        return max(0.0, self.seconds - (self.run_wait or 0.0))

    def gil_wait(self, interval: float) -> float:
        """How much of it went by waiting for the GIL: all or nothing; little is nothing.

        Whoever waits for the GIL asks for it every switch interval (``interval`` seconds).
        """
        asked = (self.switches or 0) * interval >= _ASKING * self.kept_away
        return self.kept_away if asked and self.kept_away >= _WAITED * interval else 0.0

    @classmethod
    def between(cls, before: Moment, after: Moment, asked_s: float) -> Oversleep:
        """From what ``Witness.own`` said in one round of the watchdog and in the next.

        ``asked_s`` is what it meant to sleep. All of the round counts but the CPU it used, for
        reading files loses the GIL as easily as sleeping does. A round in which the watchdog waited
        for a lock or a disk of its own says nothing, and must not be handed in.
        """
        switches = _delta(before.own_switches, after.own_switches)
        worked = after.own_cpu - before.own_cpu
        return cls(
            seconds=max(0.0, after.at - before.at - worked - asked_s),
            switches=None if switches is None else max(0, int(switches) - 1),
            run_wait=_delta(before.own_run_wait, after.own_run_wait),
        )


class LoopRound(NamedTuple):
    """What the loop thread did in one round of the watchdog's. Seconds."""

    lasted: float
    cpu: float
    runs: int
    """Times it was put on a CPU."""

    @classmethod
    def between(cls, before: Moment, after: Moment) -> LoopRound | None:
        """From two readings of its books; None where one of them has them not."""
        cpu, runs = _delta(before.cpu, after.cpu), _delta(before.runs, after.runs)
        if cpu is None or runs is None:
            return None
        return cls(max(0.0, after.at - before.at), cpu, int(runs))


@dataclass(frozen=True)
class Evidence:
    """All there is to know about one stall."""

    duration_s: float
    start: Moment
    """The last snapshot from before the stall, if there is one, else the first from within."""
    end: Moment
    """The first snapshot after the stall."""
    rounds: Sequence[Oversleep] = ()
    """All of the watchdog's between the two, also those that were on time."""
    loop_rounds: Sequence[LoopRound | None] = ()
    """The loop thread in the same rounds; empty where that was not read."""
    usual_runs: float = 0.0
    """Times a second the loop thread was put on a CPU before the stall, in its normal course."""
    gc_s: float = 0.0
    """Collections on the loop thread that overlap the stall."""
    samples: Sequence[Sample] = ()
    others: Mapping[int, float] = field(default_factory=dict[int, float])
    """CPU seconds other threads used between start and end, by native id; the loop's left out."""
    switch_interval_s: float = 0.005
    """``sys.getswitchinterval()``."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The cause, whether it is certain, and the figures it rests on (seconds end in ``_s``)."""

    cause: Cause
    confident: bool
    facts: dict[str, float | int | str]


def judge(evidence: Evidence) -> Verdict:
    """The first cause whose rule holds, or ``unknown``."""
    case = _Case(evidence)
    for cause, rule in _RULES:
        confident = rule(case)
        if confident is not None:
            return Verdict(cause, confident, case.facts(cause))
    return Verdict("unknown", False, case.facts("unknown"))


class _Case:
    """The evidence, in figures the rules speak of. Each is None where it cannot be known."""

    def __init__(self, evidence: Evidence) -> None:
        start, end = evidence.start, evidence.end
        self.evidence = evidence
        self.interval = evidence.switch_interval_s
        self.window = end.at - start.at if end.at > start.at else evidence.duration_s
        # Where the books were opened before the stall they may tell of earlier work too. Counting
        # that in makes a thread look busier than it was, which accuses nobody of blocking.
        self.span = max(1e-9, min(self.window, evidence.duration_s))
        self.cpu = self._within(start.cpu, end.cpu)
        self.run_wait = self._within(start.run_wait, end.run_wait)
        self.runs = _delta(start.runs, end.runs)
        self.throttled = _delta(start.throttled, end.throttled)
        self.suspended = _delta(start.suspended, end.suspended)
        self.faults = _delta(start.major_faults, end.major_faults)
        self.latest = max(evidence.rounds, key=lambda each: each.seconds, default=Oversleep(0.0))

    # Was the process there?

    @cached_property
    def late(self) -> float:
        """For how long, at a stretch, the watchdog was kept away."""
        return self.latest.kept_away

    @cached_property
    def asked(self) -> bool | None:
        """Whether the watchdog, while it was late, asked for the GIL; None if too short to tell."""
        if self.latest.switches is None or self.late < _DISTINCT * self.interval:
            return None
        return self.latest.switches * self.interval >= _ASKING * self.late

    @cached_property
    def absent(self) -> float:
        """For how long the whole process stood still, as far as the watchdog can tell."""
        someone_ran = max([self.cpu or 0.0, *self.evidence.others.values()]) >= _MOST * self.late
        return min(self.late, self.span) if self.asked is False and not someone_ran else 0.0

    @cached_property
    def present(self) -> float:
        """For how long the loop thread could have run, had it wanted to."""
        return max(1e-9, self.span - (self.run_wait or 0.0) - self.absent)

    @cached_property
    def undisturbed(self) -> bool:
        """Whether it could have run nearly all the time, and the books tell of that time."""
        fits = _MOST <= self.window / max(1e-9, self.evidence.duration_s) <= 1 + _MOST
        return fits and self.present >= (1 - _NOTABLE) * self.span

    # What did the loop thread do?

    @cached_property
    def still(self) -> bool | None:
        """Whether it hardly used any CPU."""
        return None if self.cpu is None else self.cpu < _STILL * self.present

    @cached_property
    def gil_held(self) -> float:
        """For how long, at a stretch, the watchdog was kept away by the GIL."""
        return self.late if self.asked else 0.0

    @cached_property
    def gil_wait(self) -> float | None:
        """For how long the loop thread may have waited for the GIL, from how often it woke up."""
        if self.runs is None or self.cpu is None:
            return None
        by_round = [*zip(self.evidence.rounds, self.evidence.loop_rounds, strict=False)]
        waits = [self._wait_in(*each) for each in by_round]
        known = [wait for wait in waits if wait is not None]
        wait = sum(known) if known and len(known) == len(waits) else self.runs * self.interval
        return min(wait, max(0.0, self.present - self.cpu))

    def _wait_in(self, late: Oversleep, loop: LoopRound | None) -> float | None:
        """For how long the loop may have waited for the GIL in one round of the watchdog's.

        Not at all where the watchdog had it at once, or late because the loop itself ran. Nor does
        what woke the loop before it was held count.
        """
        if loop is None:
            return None
        if late.kept_away - loop.cpu < _BUSY * self.interval:
            return 0.0
        others = self.evidence.usual_runs * max(0.0, loop.lasted - late.seconds)
        runs = max(0.0, loop.runs - others)
        return min(runs * self.interval, max(0.0, loop.lasted - loop.cpu))

    @cached_property
    def wanted_gil(self) -> bool | None:
        """Whether it spent most of the stall asking for the GIL."""
        if self.gil_busy is False:
            return False  # it woke up for other reasons: a query, and another, and another
        if self.gil_wait is None:
            return None
        return self.gil_busy if self.gil_wait >= _MOST * self.present else False

    @cached_property
    def gil_busy(self) -> bool | None:
        """Whether the GIL mostly was not to be had at once.

        With others that compute in Python, whoever wakes up waits for a switch interval. One late
        round among many on time shows nothing.
        """
        if not self.evidence.rounds:
            return None
        return self.lateness >= _BUSY * self.interval

    @cached_property
    def lateness(self) -> float:
        """How late the watchdog's rounds were on average."""
        rounds = self.evidence.rounds
        return sum(each.kept_away for each in rounds) / max(1, len(rounds))

    # Where was it?

    @cached_property
    def agreed(self) -> bool:
        """Whether the samples speak of one culprit.

        One sample will do if the GIL was held until it was taken: whoever waits for the GIL gets it
        right behind the call that held it.
        """
        samples = self.evidence.samples
        if len(samples) == 1:
            return self.gil_held >= (1 - _NOTABLE) * self.span
        return self.leading >= 2 and self.leading > _MOST * len(samples)

    @cached_property
    def leading(self) -> int:
        """How many samples carry the signature most of them carry."""
        counts = Counter(sample.signature for sample in self.evidence.samples)
        return max(counts.values(), default=0)

    def mostly(self, is_so: Callable[[Sample], bool]) -> bool:
        """Whether something is so in more than half of the samples."""
        samples = self.evidence.samples
        return sum(map(is_so, samples)) > _MOST * len(samples)

    @cached_property
    def holders(self) -> list[tuple[int, float]]:
        """Other threads that may have held the GIL while the loop wanted it, busiest first."""
        waited = max(0.0, self.present - (self.cpu or 0.0))
        busiest = sorted(self.evidence.others.items(), key=lambda item: -item[1])
        enough = [item for item in busiest if item[1] >= _HOLDS * waited]
        # Where none ran that long, they took turns, or the holder was short of a CPU itself.
        return enough or [item for item in busiest[:1] if item[1] >= _NOTABLE * waited]

    def facts(self, cause: Cause) -> dict[str, float | int | str]:
        """What is known, by name; what is not is left out."""
        evidence = self.evidence
        leaf_waits = Counter(sample.waits for sample in evidence.samples if sample.waits)
        known: dict[str, float | int | str | None] = {
            "books_s": self.window,
            "cpu_s": self.cpu,
            "run_wait_s": self.run_wait,
            "throttled_s": self.throttled,
            "suspended_s": self.suspended,
            "major_faults": self.faults,
            "gc_s": evidence.gc_s,
            "oversleep_s": self.latest.seconds if evidence.rounds else None,
            "oversleep_switches": self.latest.switches,
            "lateness_s": self.lateness if evidence.rounds else None,
            "absent_s": self.absent,
            "gil_held_s": self.gil_held,
            "gil_wait_s": self.gil_wait,
            "samples": len(evidence.samples),
            "samples_of_leading": self.leading,
            "state": evidence.end.state,
            "waits": leaf_waits.most_common(1)[0][0] if leaf_waits else None,
        }
        if cause == "gil_contention" and self.holders:
            known["thread"], known["thread_cpu_s"] = self.holders[0]
        return {name: value for name, value in known.items() if value is not None}

    def _within(self, before: float | None, after: float | None) -> float | None:
        """A thread's seconds, but no more than there were."""
        seconds = _delta(before, after)
        return None if seconds is None else min(seconds, self.span)


def _suspended(case: _Case) -> bool | None:
    """The process or the machine was stopped, or somebody sat in a debugger."""
    if (case.suspended or 0.0) >= _ASLEEP:
        return True
    if case.evidence.end.state in ("T", "t"):
        return True
    if case.evidence.samples and case.mostly(_in_debugger):
        return True
    if case.absent < _MOST * case.span:
        return None
    # The quota stops processes too. The kernel counts a runnable thread's wait for it, but neither
    # the watchdog nor the loop need have been runnable.
    return None if (case.throttled or 0.0) >= _MOST * case.absent else True


def _starved(case: _Case) -> bool | None:
    """The thread wanted to run and got no CPU."""
    if (case.run_wait or 0.0) >= _MOST * case.span:
        return True
    if (case.throttled or 0.0) < _MOST * case.span or (case.cpu or 0.0) >= _MOST * case.span:
        return None
    if case.run_wait is None:
        return False
    # A quota's books are the group's, not the thread's: it must have wanted to run, itself or by
    # way of the GIL, which may be with a thread that is not let run.
    wanted = case.run_wait >= _NOTABLE / 2 * case.span or case.wanted_gil
    return True if wanted or case.absent >= _MOST * case.span else None


def _gc(case: _Case) -> bool | None:
    """Collections took most of it."""
    return True if case.evidence.gc_s >= _MOST * max(1e-9, case.evidence.duration_s) else None


def _gil_contention(case: _Case) -> bool | None:
    """Another thread held the GIL, and the loop thread kept asking for it."""
    if not case.wanted_gil or case.cpu is None or case.cpu >= _MOST * case.present:
        return None
    named = len(case.holders) == 1 and case.holders[0][1] >= _HOLDS * (case.present - case.cpu)
    return named and case.undisturbed


def _saturation(case: _Case) -> bool | None:
    """Many callbacks, none of them the culprit."""
    samples = len(case.evidence.samples)
    if samples < _SEVERAL or case.leading > _MOST * samples:
        return None
    return samples >= _MANY and case.undisturbed


def _import(case: _Case) -> bool | None:
    """The loop was importing modules."""
    if not case.evidence.samples or not case.mostly(_importing):
        return None
    return case.agreed and case.undisturbed


def _lock(case: _Case) -> bool | None:
    """The loop waited for a lock, a condition, a queue, a future of another thread."""
    if not case.still or case.wanted_gil or not case.evidence.samples:
        return None
    known = [sample.waits for sample in case.evidence.samples if sample.waits]
    in_futex = case.mostly(lambda sample: sample.waits == "futex")
    if known and "futex" not in known:
        return None  # every lock of Python's is a futex
    gil_was_free = case.gil_held < _MOST * case.span
    if case.mostly(_at_lock) or (in_futex and gil_was_free):
        return case.agreed and case.undisturbed
    return None


def _cpu(case: _Case) -> bool | None:
    """The loop ran."""
    if case.cpu is None or case.cpu < _MOST * case.present:
        return None
    return case.agreed and case.undisturbed


def _blocking_call(case: _Case) -> bool | None:
    """The loop slept in a call, with the GIL or without."""
    if not case.still:
        return None
    certain = case.wanted_gil is False and (case.faults or 0) < _FAULTS
    if not certain and case.gil_held >= _MOST * case.span and case.holders:
        return None  # it may as well have wanted the GIL of the one that held it
    return certain and case.agreed and case.undisturbed


def _mostly_blocking(case: _Case) -> bool | None:
    """It ran for a part of the stall, and slept in calls for the larger one."""
    if case.cpu is None or case.wanted_gil is not False or not case.undisturbed:
        return None
    return False if case.cpu < _MOST * case.present else None


_RULES: tuple[tuple[Cause, Callable[[_Case], bool | None]], ...] = (
    ("suspended", _suspended),
    ("starved", _starved),
    ("gc", _gc),
    ("gil_contention", _gil_contention),
    ("saturation", _saturation),
    ("import", _import),
    ("lock", _lock),
    ("cpu", _cpu),
    ("blocking_call", _blocking_call),
    ("blocking_call", _mostly_blocking),
)


def _in_debugger(sample: Sample) -> bool:
    """Whether a debugger has the last word.

    Under ``python -m pdb`` every stack begins in the debugger, so what counts is who called the
    library functions at the end.
    """
    for code, _ in reversed(sample.stack):
        if _of_debugger(code.co_filename):
            return True
        if not _of_library(code.co_filename):
            return False
    return False


def _of_debugger(filename: str) -> bool:
    return filename in _DEBUGGERS or not _DEBUGGER_PACKAGES.isdisjoint(
        part.removesuffix(".py") for part in PurePath(filename).parts
    )


def _of_library(filename: str) -> bool:
    if filename.startswith("<frozen "):
        return True
    path = PurePath(filename)
    return path.is_relative_to(_LIBRARY) and "site-packages" not in path.parts


def _importing(sample: Sample) -> bool:
    """Whether an import is under way inside of the loop; the loop itself may run in one."""
    for code, _ in reversed(sample.stack):
        if code.co_filename.startswith(_IMPORT):
            return True
        if code.co_filename in _LOOPS:
            return False
    return False


def _at_lock(sample: Sample) -> bool:
    """Whether the innermost frame is one that waits for locks."""
    if not sample.stack:
        return False
    code, line = sample.stack[-1]
    return code.co_filename in _LOCKS or _acquires(code, line)


def _acquires(code: CodeType, line: int) -> bool:
    """Whether the instructions of a line look up an ``acquire``. Disassembles where one may."""
    return "acquire" in code.co_names and any(
        instruction.argval == "acquire"
        and instruction.positions is not None
        and instruction.positions.lineno == line
        for instruction in dis.get_instructions(code)
    )


def _delta(before: float | None, after: float | None) -> float | None:
    """How much a counter grew; None where it was not to be read."""
    return None if before is None or after is None else max(after - before, 0)
