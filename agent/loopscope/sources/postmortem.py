"""A stall that is over, or not yet: where its time went, whose step it was, who had to wait.

What the watchdog saw (``sources.suspicion``) becomes a record here. Each sample stands for the time
around it, so everything is weighed in seconds: where most of them went is what is named, and only
if that can be trusted. A wrong accusation is worse than none.

A sample that came late needs a closer look. Where the watchdog was waiting for the GIL meanwhile,
nobody could have gone on to other Python code: whoever runs Python gives the GIL away after a
switch interval, a C call does when it returns. So that one sample stands for all the time the
watchdog was kept from taking it, while those taken in quick succession after it stand for little.
"""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

from loopscope.core.clock import Clock
from loopscope.core.stacks import Stack, UserCode
from loopscope.core.stall import Stall
from loopscope.sources.cause import Evidence, LoopRound, Oversleep, Sample, Verdict, judge
from loopscope.sources.evidence import Moment
from loopscope.sources.loop import Interval
from loopscope.sources.suspicion import Look, Running, Suspicion, Wake, Watched

HANDLE_RUN = asyncio.Handle._run.__code__  # noqa: SLF001
"""What runs each callback where the loop's frames are Python's."""

_MOST_STACKS = 20
"""Different stacks kept in a record."""
_MOST = 0.5
"""The share of a stall that has to be at one place for that place to be accused."""
_KEPT = 0.4
"""The share the watchdog must have been kept away by one call for a single sample to accuse it."""
_USUAL = 4
"""Rounds before a stall that say what the loop is like when all is well."""
_NOBODY = frozenset(("starved", "suspended", "gc", "saturation", "gil_contention"))
"""Causes for which no line of the loop's own is to blame."""


class Round(NamedTuple):
    """One round of the watchdog's: when it came back, how late, and what the loop did meanwhile."""

    at: float
    late: Oversleep
    loop: LoopRound | None


class Books(NamedTuple):
    """What was read in and around a stall."""

    rounds: Sequence[Round]
    end: Moment
    """The first snapshot after it."""
    others: dict[int, float]
    """CPU seconds of the other threads, by native id."""
    wake: Wake | None
    """What all threads were doing when the watchdog came back late, if it did."""


class _Share(NamedTuple):
    """A sample, and the seconds of the stall that it stands for."""

    look: Look
    seconds: float
    kept: float
    """For how long of them the watchdog had waited for the GIL to take it."""


class _Place(NamedTuple):
    """A function of the user's that a stall may have been in."""

    location: str
    label: str
    look: Look
    is_certain: bool
    """Whether the samples alone are enough to accuse it."""


class Postmortem:
    """Makes records of stalls. ``pauses`` lists the collector's latest, each with its thread."""

    def __init__(
        self,
        clock: Clock,
        user_code: UserCode,
        pauses: Callable[[], Iterable[tuple[float, float, int]]],
        worker: str = "",
    ) -> None:
        self._clock = clock
        self._user_code = user_code
        self._pauses = pauses
        self._worker = worker

    def describe(self, suspicion: Suspicion, began: float, ended: float) -> Stall:
        """What is known without a judgement: where the time went, and who was running."""
        stall = Stall(
            suspicion.id,
            self._clock.wall(began),
            ended - began,
            worker=self._worker,
            in_progress=True,
        )
        shares = _shares(suspicion.looks, began, ended)
        stacks: dict[tuple[str, ...], float] = defaultdict(float)
        runners: dict[Running, float] = defaultdict(float)
        for look, seconds, _ in shares:
            stacks[self._user_code.described(look.stack)] += seconds
            if look.running is not None:
                runners[look.running] += seconds
        stall.stacks = tuple(sorted(stacks.items(), key=itemgetter(1), reverse=True)[:_MOST_STACKS])
        if shares:
            self._place(stall, self._main_place(shares) or self._likeliest_place(shares))
        if runners:
            runner = max(runners, key=runners.__getitem__)
            stall.route, stall.method = runner.route, runner.method
            stall.task, stall.trace_id = runner.task, runner.trace_id
        return stall

    def conclude(
        self, watched: Watched, suspicion: Suspicion, held: Interval, books: Books
    ) -> Stall:
        """The record of a stall that is over."""
        began, ended = held
        suspicion.looks = [look for look in suspicion.looks if look.at <= ended]
        began = self._true_beginning(watched, suspicion, began)
        stall = self.describe(suspicion, began, ended)
        stall.in_progress = False
        stall.is_estimate = not watched.monitor.has_selector and not (
            watched.monitor.is_exact and suspicion.looks
        )
        verdict = judge(self._evidence(watched, suspicion, began, ended, books))
        stall.cause = verdict.cause
        stall.evidence = verdict.facts
        if not self._may_accuse(suspicion, verdict, began, ended):
            stall.location = stall.label = ""
        if verdict.cause == "gil_contention":
            stall.evidence = {**verdict.facts, **self._thief(books.wake, verdict)}
        stall.victims = _victims(watched, suspicion, began, ended)
        return stall

    def _true_beginning(self, watched: Watched, suspicion: Suspicion, estimate: float) -> float:
        """Where only beats are known, the step that was seen running says when it began."""
        if watched.monitor.is_exact:
            return estimate
        steps = {look.running.since for look in suspicion.looks if look.running is not None}
        since = steps.pop() if len(steps) == 1 else 0.0
        return since if abs(since - estimate) <= watched.monitor.interval else estimate

    def _place(self, stall: Stall, place: _Place) -> None:
        stall.location, stall.label = place.location, place.label
        stall.leaf = self._user_code.leaf(place.look.stack)
        running = place.look.running
        if running is not None and place.look.stack and place.look.stack[-1][0] is HANDLE_RUN:
            stall.leaf = running.task  # C code, called by the loop itself

    def _main_place(self, shares: Sequence[_Share]) -> _Place | None:
        """The innermost function of the user's that most of the stall was in, or below.

        Helpers that take turns are not to blame one by one, but what calls them is: the line of it
        that took longest.
        """
        seconds: dict[str, float] = defaultdict(float)
        lines: dict[tuple[str, str], float] = defaultdict(float)
        seen: dict[str, int] = defaultdict(int)
        kept: dict[str, float] = defaultdict(float)
        for share in shares:
            for label, location in self._places(share.look.stack):
                seconds[label] += share.seconds
                lines[label, location] += share.seconds
                kept[label] += share.kept
                seen[label] += 1
        whole = sum(share.seconds for share in shares)
        for share in sorted(shares, key=lambda share: -share.seconds):
            for label, _ in self._places(share.look.stack):
                if seconds[label] > _MOST * whole:
                    return _Place(
                        max((s, at) for (of, at), s in lines.items() if of == label)[1],
                        label,
                        share.look,
                        seen[label] > 1 or kept[label] >= _KEPT * whole,
                    )
        return None

    def _places(self, stack: Stack) -> Iterator[tuple[str, str]]:
        """Label and location of each of the user's functions in a stack, innermost first."""
        known: set[str] = set()
        for code, line in self._user_code.frames(stack):
            label = self._user_code.describe(code)
            if label not in known:  # a function that calls itself counts once
                known.add(label)
                yield label, self._user_code.describe(code, line)

    def _likeliest_place(self, shares: Sequence[_Share]) -> _Place:
        """The innermost line of the user's that was seen for longest."""
        by_place: dict[str, float] = defaultdict(float)
        for look, seconds, _ in shares:
            by_place[self._user_code.location(look.stack)] += seconds
        location = max(by_place, key=by_place.__getitem__)
        look = next(s.look for s in shares if self._user_code.location(s.look.stack) == location)
        return _Place(location, self._user_code.label(look.stack), look, is_certain=False)

    def _may_accuse(
        self, suspicion: Suspicion, verdict: Verdict, began: float, ended: float
    ) -> bool:
        """Whether a line may be accused: one sample will do where it is certain, else two."""
        if verdict.cause == "unknown" or verdict.cause in _NOBODY:
            return False
        place = self._main_place(_shares(suspicion.looks, began, ended))
        return place is not None and (place.is_certain or verdict.confident)

    def _evidence(
        self, watched: Watched, suspicion: Suspicion, began: float, ended: float, books: Books
    ) -> Evidence:
        collecting = sum(
            max(0.0, min(until, ended) - max(since, began))
            for since, until, thread in self._pauses()
            if thread == watched.monitor.thread
        )
        start, end = _closest(suspicion, began, ended, books.end)
        rounds = [
            each
            for each in books.rounds
            if each.at >= began and each.at - each.late.seconds <= ended
        ]
        return Evidence(
            duration_s=ended - began,
            start=start,
            end=end,
            rounds=[each.late for each in rounds],
            loop_rounds=[each.loop for each in rounds],
            usual_runs=runs_per_second(each.loop for each in books.rounds if each.at < began),
            gc_s=collecting,
            samples=[
                Sample(look.at - began, look.signature, look.stack, look.waits)
                for look in suspicion.looks
            ],
            others=books.others,
            switch_interval_s=sys.getswitchinterval(),
        )

    def _thief(self, wake: Wake | None, verdict: Verdict) -> dict[str, str]:
        """The thread that held the interpreter, by name, and the line it was seen at after that."""
        native_id = verdict.facts.get("thread")
        if wake is None or native_id is None:
            return {}  # naming nobody is better than naming the wrong one
        name, stack = wake.threads.get(int(native_id), ("", ()))
        return {"thread_name": name, "thread_location": self._user_code.location(stack)}


def _victims(
    watched: Watched, suspicion: Suspicion, began: float, ended: float
) -> dict[tuple[str, str], tuple[int, float]]:
    """Requests that had been asleep and ran as soon as the loop came round, by route and method."""
    victims: dict[tuple[str, str], tuple[int, float]] = {}
    for each, suspended in suspicion.waiting:
        if suspended < ended <= each.step_started:
            label = watched.label_of(each)
            requests, seconds = victims.get(label, (0, 0.0))
            victims[label] = (requests + 1, seconds + ended - max(began, suspended))
    return victims


def _closest(
    suspicion: Suspicion, began: float, ended: float, after: Moment
) -> tuple[Moment, Moment]:
    """The two readings that lie closest to where the stall began and ended.

    What they tell of the time beyond is somebody else's; what they leave out goes untold.
    """
    starts = [suspicion.before, *(look.moment for look in suspicion.looks[:1])]
    ends = [*(look.moment for look in suspicion.looks[-1:]), after]
    start = min(starts, key=lambda moment: abs(moment.at - began))
    end = min(ends, key=lambda moment: abs(moment.at - ended))
    if end.at - start.at < _MOST * (ended - began):
        start, end = suspicion.before, after
    if end.at - start.at < _MOST * (ended - began):  # we had only just begun to look
        start, end = Moment(began), Moment(ended)
    return start, end


def runs_per_second(rounds: Iterable[LoopRound | None]) -> float:
    """How often the loop thread was put on a CPU when nothing was wrong; 0.0 if not known."""
    latest = [each for each in rounds if each is not None][-_USUAL:]
    lasted = sum(each.lasted for each in latest)
    return sum(each.runs for each in latest) / lasted if lasted else 0.0


def _shares(looks: Sequence[Look], began: float, ended: float) -> list[_Share]:
    """Each sample with the seconds it stands for: from halfway to the one before to halfway on.

    What counts of a sample that had to wait for the GIL is when it was asked for.
    """
    if not looks:
        return []
    interval = sys.getswitchinterval()
    kept = [min(look.late.gil_wait(interval), look.at - began) for look in looks]
    taken = [look.at for look in looks]
    asked = [at - wait for at, wait in zip(taken, kept, strict=True)]
    middles = [(a + max(a, b)) / 2 for a, b in zip(taken, asked[1:], strict=False)]
    edges = [began, *middles, ended]
    return [
        _Share(look, max(0.0, until - since), wait)
        for look, wait, (since, until) in zip(looks, kept, pairwise(edges), strict=True)
    ]
