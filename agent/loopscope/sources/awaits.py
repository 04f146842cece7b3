"""The await profile: which line of the user's code waited for what, for how long, how often.

When a coroutine is about to go on after a long wait, its chain of awaits still shows where it was
(``core.chains``): so it is walked then, and only then, and no library needs to be instrumented. A
walk costs some microseconds. What all of them cost is held below a hundredth of one core; waits for
which there was nothing left are counted under the site ``_UNKNOWN``. Longer waits come first: a
part of what may be spent is kept for them, as they are fewer and most of the time is theirs.

The loop's thread adds to a table of its own, by route and chain; everything that has to do with
names is done by whoever reads. Waits of a request and of the tasks it made each count, also where
they were at one time: the profile says what was waited for, the phases how long that took.

*Sequences*: waits of one coroutine, one after the other, each of some milliseconds, that part in
one function of the user's: two of its lines that await, or one that does so in a loop. Where a
route has the same sequence every time, its parts may not depend on each other, and running them
together would save all but the longest of them. Whether they do depend is for the reader to say:
the figure is an upper bound. What a framework calls one after the other (a middleware and then the
endpoint, dependencies) is none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from types import CodeType
from typing import Final, NamedTuple

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.chains import Chain, locate, walk
from loopscope.core.histogram import Number
from loopscope.core.metric import Metric
from loopscope.core.page import Page
from loopscope.core.stacks import Stack, UserCode

_LABELS = ("http_route", "site", "callee")

SECONDS = Metric(
    "loopscope_await_seconds_total",
    "counter",
    "Seconds requests and their tasks waited, by the line of the service's code that waited and "
    "what it called there; waits of less than a millisecond (await_threshold) are left out.",
    _LABELS,
    unit="seconds",
)
COUNT = Metric(
    "loopscope_await_count_total",
    "counter",
    "How often they waited there.",
    _LABELS,
)
SEQUENTIAL = Metric(
    "loopscope_sequential_await_seconds_total",
    "counter",
    "Seconds that would have been saved, at most, had waits been at one time that always came one "
    "after the other in this function.",
    ("http_route", "location"),
    unit="seconds",
)

METRICS = (SECONDS, COUNT, SEQUENTIAL)

UNKNOWN: Final = "_UNKNOWN"
"""The site of waits that were not looked at, for that would have cost too much."""

_SHARE = 0.01
"""Of one core, for walks."""
_MOST_SAVED = 0.05
"""Seconds of that share that can be saved up."""
_MOST_PLACES = 2000
_MOST_SEQUENCES = 500
_MOST_SERIES = 500
_USUAL = 0.8
"""The share of a route's requests from which a sequence of theirs is what always happens."""
_FEW = 5
"""Requests of a route that say nothing yet about always."""
_NOWHERE: Final = Chain((), "")


@dataclass(slots=True, eq=False)
class Place:
    """One route's waits in one place."""

    route: str
    chain: Chain
    child: str
    """Which of the tasks that were waited for was the last to end, if that is known."""
    is_task: bool
    """Whether it was a task that waited, not the request's own coroutine."""
    count: int = 0
    seconds: float = 0.0
    names: tuple[str, str] | None = None
    """Site and callee, once somebody has asked: they cost more than all else that reading does."""


@dataclass(slots=True, eq=False)
class Run:
    """Waits of one function that came one after the other; repeated ones are there once."""

    route: str
    function: CodeType
    places: tuple[Place, ...]
    requests: int = 0
    """How many requests had them, each of them once."""
    latest: int = 0
    """Which of the route's requests was the latest to have them."""
    saved: float = 0.0
    """Seconds all of them but the longest took."""


class Waited(NamedTuple):
    """One long wait of a request."""

    driver: int
    """Whose coroutine waited: 0 for the request's own, else the number of its task."""
    chain: Chain
    child: str
    alone: bool
    """Whether nothing else of the request ran meanwhile, for which it may have waited."""
    seconds: float


class AwaitTable:
    """The long waits of the requests of one event loop; only its thread writes.

    ``threshold`` is how many seconds make a wait long, ``sequential`` from how many on it counts as
    a part of a sequence. ``users`` tells whose code is whose.
    """

    def __init__(
        self, now: Callable[[], float], users: UserCode, *, threshold: float, sequential: float
    ) -> None:
        self.threshold = threshold
        self.spent = 0.0
        """Seconds that walks took."""
        self.places: dict[Hashable, Place] = {}
        self.runs: dict[Hashable, Run] = {}
        self.requests: defaultdict[str, int] = defaultdict(int)
        """By route, those with a long wait."""
        self.folded = 0
        """Waits that did not get a place of their own."""
        self._now = now
        self._users = users
        self._sequential = sequential
        self._partings: dict[tuple[int, int], CodeType | None] = {}
        self._saved_up = _MOST_SAVED
        self._counted_until = now()

    def look(self, coroutine: object, moment: float, seconds: float) -> Chain:
        """Where ``coroutine`` waits, for so long by now; nowhere, if that may not be looked for."""
        saved_up = self._saved_up + (moment - self._counted_until) * _SHARE
        self._saved_up = saved_up = min(saved_up, _MOST_SAVED)
        self._counted_until = moment
        if saved_up <= _kept_from(seconds):
            return _NOWHERE
        chain = walk(coroutine)
        spent = self._now() - moment
        self.spent += spent
        self._saved_up = saved_up - spent
        return chain

    def add(self, route: str, waits: Sequence[Waited]) -> None:
        """Count the waits of a request that has ended, in their order."""
        self.requests[route] += 1
        if len(waits) == 1:
            place = self._place(route, waits[0])
            place.count += 1
            place.seconds += waits[0].seconds
            return
        sequences: defaultdict[int, list[tuple[Place, float]]] = defaultdict(list)
        for wait in waits:
            place = self._place(route, wait)
            place.count += 1
            place.seconds += wait.seconds
            if wait.alone and wait.seconds >= self._sequential:
                sequences[wait.driver].append((place, wait.seconds))
        for sequence in sequences.values():
            if len(sequence) > 1:
                self._add_runs(route, sequence)

    def _place(self, route: str, wait: Waited) -> Place:
        stack, leaf = wait.chain
        is_task = wait.driver > 0
        # By identity: hashing code objects would cost more than the walk. They are kept alive here.
        key = (route, leaf, wait.child, is_task, *map(id, stack))
        place = self.places.get(key)
        if place is None:
            if len(self.places) >= _MOST_PLACES:
                self.folded += 1
                key = (route, OVERFLOW)
                wait = wait._replace(chain=_NOWHERE, child=OVERFLOW)
            place = self.places.setdefault(key, Place(route, wait.chain, wait.child, is_task))
        return place

    def _add_runs(self, route: str, sequence: list[tuple[Place, float]]) -> None:
        """Cut a coroutine's waits into runs that part in one function."""
        run = [sequence[0]]
        function: CodeType | None = None
        for wait in sequence[1:]:
            parting = self._parting(run[-1][0], wait[0])
            if parting is not function and len(run) > 1:
                self._add_run(route, function, run)
                run = [run[-1]]
            if parting is None:
                run = [wait]
            else:
                run.append(wait)
            function = parting
        self._add_run(route, function, run)

    def _add_run(
        self, route: str, function: CodeType | None, waits: list[tuple[Place, float]]
    ) -> None:
        if function is None or len(waits) < 2:
            return
        places = tuple(place for place, _ in groupby(place for place, _ in waits))
        key = (route, id(function), *map(id, places))
        run = self.runs.get(key)
        if run is None:
            if len(self.runs) >= _MOST_SEQUENCES:
                return
            run = self.runs[key] = Run(route, function, places)
        seconds = [seconds for _, seconds in waits]
        run.saved += sum(seconds) - max(seconds)
        if run.latest != self.requests[route]:
            run.latest = self.requests[route]
            run.requests += 1

    def _parting(self, first: Place, second: Place) -> CodeType | None:
        """The user's function in which two waits part; None if there is none."""
        key = (id(first), id(second))
        if key not in self._partings:
            if len(self._partings) >= _MOST_PLACES:
                self._partings.clear()
            self._partings[key] = _parting(first.chain.stack, second.chain.stack, self._users)
        return self._partings[key]


def _kept_from(seconds: float) -> float:
    """What has to be left for longer waits than one of so many seconds."""
    if seconds >= 0.1:
        return 0.0
    return 0.3 * _MOST_SAVED if seconds >= 0.01 else 0.6 * _MOST_SAVED


def _parting(first: Stack, second: Stack, users: UserCode) -> CodeType | None:
    if first == second:  # a loop; whose, the innermost line of the user's may say
        site = users.find(first)
        return None if site is None else first[site][0]
    shorter = min(len(first), len(second))
    at = next((n for n in range(shorter) if first[n] != second[n]), shorter)
    if at == shorter or first[at][0] is not second[at][0]:
        at -= 1  # one line that called two things
    if at < 0 or not users.owns(first[at][0]):
        return None
    if _comes_back(first[at + 1 :], users) or _comes_back(second[at + 1 :], users):
        return None
    return first[at][0]


def _comes_back(stack: Stack, users: UserCode) -> bool:
    """Whether libraries call the user's code again: then they decide what comes after what."""
    owned = [users.owns(code) for code, _ in stack]
    return any(b and not a for a, b in pairwise(owned))


class Awaited(NamedTuple):
    """All waits of one route at one line for one thing."""

    route: str
    site: str
    callee: str
    waits: int
    seconds: float


class Sequential(NamedTuple):
    """Waits of one function that always come one after the other."""

    route: str
    location: str
    sites: tuple[str, ...]
    requests: int
    saved_at_most: float
    """Seconds, of all these requests."""


class AwaitsSource:
    """Puts names to what the tables of all loops hold, and publishes that."""

    def __init__(
        self, page: Page, tables: Callable[[], Iterable[AwaitTable]], users: UserCode
    ) -> None:
        self._page = page
        self._tables = tables
        self._users = users
        self._series: Budget[tuple[str, str, str], tuple[Number, Number]] = Budget(
            _MOST_SERIES, self._make, lambda: self._make((OVERFLOW,) * 3)
        )
        self._sequences: Budget[tuple[str, str], Number] = Budget(
            _MOST_SERIES, self._make_sequence, lambda: self._make_sequence((OVERFLOW,) * 2)
        )

    @property
    def folded(self) -> int:
        """How many waits were folded into others."""
        return sum(table.folded for table in self._tables())

    def refresh(self) -> None:
        """Publish all waits; those that took longest are the first to get a series."""
        totals: defaultdict[tuple[Number, Number], list[float]] = defaultdict(lambda: [0.0, 0.0])
        for wait in self.listed():
            numbers = self._series.admit((wait.route, wait.site, wait.callee))
            if numbers is not None:
                totals[numbers][0] += wait.seconds
                totals[numbers][1] += wait.waits
        for (seconds, count), (total, waits) in totals.items():
            seconds.set(total)
            count.set(waits)
        saved: defaultdict[Number, float] = defaultdict(float)
        for sequence in self.sequential():
            number = self._sequences.admit((sequence.route, sequence.location))
            if number is not None:
                saved[number] += sequence.saved_at_most
        for number, total_saved in saved.items():
            number.set(max(number.value, total_saved))  # what is usual may change

    def listed(self) -> list[Awaited]:
        """All waits by route, site and callee; those that took longest first. From any thread."""
        totals: defaultdict[tuple[str, str, str], list[float]] = defaultdict(lambda: [0, 0.0])
        for table in self._tables():
            for place in list(table.places.values()):
                total = totals[place.route, *self._names(place)]
                total[0] += place.count
                total[1] += place.seconds
        found = [Awaited(*key, int(count), seconds) for key, (count, seconds) in totals.items()]
        return sorted(found, key=lambda wait: wait.seconds, reverse=True)

    def sequential(self) -> list[Sequential]:
        """What always waits one after the other, most to be saved first. From any thread."""
        found: list[Sequential] = []
        for table in self._tables():
            for run in list(table.runs.values()):
                of_all = table.requests[run.route]
                if of_all >= _FEW and run.requests >= _USUAL * of_all:
                    sites = tuple(self._names(place)[0] for place in run.places)
                    location = self._users.describe(run.function)
                    found.append(Sequential(run.route, location, sites, run.requests, run.saved))
        return sorted(found, key=lambda each: each.saved_at_most, reverse=True)

    def stacks(self) -> list[tuple[str, bool, tuple[str, ...], float]]:
        """Route, whether it was a task that waited, frames and seconds of all waits.

        Frames are outermost first; the last say what was waited for.
        """
        found: list[tuple[str, bool, tuple[str, ...], float]] = []
        for table in self._tables():
            for place in list(table.places.values()):
                frames = self._users.described(place.chain.stack) or (UNKNOWN,)
                ends = [f"await {end}" for end in (place.chain.leaf, place.child) if end]
                found.append((place.route, place.is_task, (*frames, *ends), place.seconds))
        return found

    def _names(self, place: Place) -> tuple[str, str]:
        """Site and callee, as labels."""
        names = place.names
        if names is None:
            names = place.names = self._name(place)
        return names

    def _name(self, place: Place) -> tuple[str, str]:
        if place.child == OVERFLOW:
            return OVERFLOW, OVERFLOW
        if not place.chain.stack:
            return UNKNOWN, UNKNOWN
        site, callee = locate(place.chain, self._users)
        return site, f"{callee}({place.child})" if place.child else callee

    def _make(self, labels: tuple[str, ...]) -> tuple[Number, Number]:
        slots = self._page.slots
        return (
            Number(slots, self._page.allocate(SECONDS, labels)),
            Number(slots, self._page.allocate(COUNT, labels)),
        )

    def _make_sequence(self, labels: tuple[str, ...]) -> Number:
        return Number(self._page.slots, self._page.allocate(SEQUENTIAL, labels))
