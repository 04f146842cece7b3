"""Stalls of the event loop, once they are over: what is known of each, kept and counted.

The watchdog finds them (``sources.watchdog``); here they become records, a few hundred of which are
kept, and metrics, which count all of them. Everything here runs on the watchdog's thread, the only
writer of these slots; readers copy.
"""

from __future__ import annotations

from collections import deque
from heapq import heappush, heappushpop

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.histogram import Histogram, Number
from loopscope.core.metric import DURATION_BOUNDS, Metric
from loopscope.core.page import Page
from loopscope.core.stall import Stall

_BY_PLACE = ("http_route", "location", "cause")

STALLS = Metric(
    "asyncio_eventloop_stalls_total",
    "counter",
    "Holds of the event loop beyond the threshold, by the route that held it (empty for what is no "
    "request), file and function (empty where none is to blame), and cause.",
    _BY_PLACE,
)
STALL_SECONDS = Metric(
    "asyncio_eventloop_stall_seconds_total",
    "counter",
    "Seconds the event loop was held in stalls.",
    _BY_PLACE,
    unit="seconds",
)
DURATION = Metric(
    "asyncio_eventloop_stall_duration_seconds",
    "histogram",
    "How long stalls lasted, by cause.",
    ("cause",),
    unit="seconds",
    bounds=DURATION_BOUNDS,
)
VICTIMS = Metric(
    "asyncio_eventloop_stall_victims_total",
    "counter",
    "Requests a stall kept waiting, by their route: those that ran as soon as it was over.",
    ("http_route",),
)
VICTIM_SECONDS = Metric(
    "asyncio_eventloop_stall_victim_seconds_total",
    "counter",
    "Seconds requests waited while others held the event loop, by their route. An upper bound: "
    "when a request became ready to run during a stall is not known.",
    ("http_route",),
    unit="seconds",
)
IN_PROGRESS = Metric(
    "asyncio_eventloop_stall_in_progress_seconds",
    "gauge",
    "How long the event loop has been held by now, if beyond the threshold, else 0.",
    unit="seconds",
    per_worker=True,
)

METRICS = (STALLS, STALL_SECONDS, DURATION, VICTIMS, VICTIM_SECONDS, IN_PROGRESS)

_MOST_PLACES = 200
_MOST_ROUTES = 500
_NEWEST = 200
_WORST = 50


class StallBook:
    """Keeps the newest and the longest stalls and counts all; only the watchdog writes."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._newest: deque[Stall] = deque(maxlen=_NEWEST)
        self._worst: list[tuple[float, int, Stall]] = []
        self._count = 0
        self._places: Budget[tuple[str, str, str], tuple[Number, Number]] = Budget(
            _MOST_PLACES, self._make_place, lambda: self._make_place((OVERFLOW,) * 3)
        )
        self._routes: Budget[str, tuple[Number, Number]] = Budget(
            _MOST_ROUTES, self._make_route, lambda: self._make_route(OVERFLOW)
        )
        self._durations: Budget[str, Histogram] = Budget(20, self._make_duration, lambda: None)
        self._in_progress = Number(page.slots, page.allocate(IN_PROGRESS))

    def add(self, stall: Stall) -> None:
        """Count a stall that is over, and keep it."""
        place = self._places.admit((stall.route, stall.label, stall.cause))
        if place is not None:
            place[0].add()
            place[1].add(stall.duration_s)
        duration = self._durations.admit(stall.cause)
        if duration is not None:
            duration.observe(stall.duration_s)
        for (route, _), (requests, seconds) in stall.victims.items():
            numbers = self._routes.admit(route)
            if numbers is not None:
                numbers[0].add(requests)
                numbers[1].add(seconds)
        self._newest.append(stall)
        self._count += 1
        entry = (stall.duration_s, self._count, stall)
        if len(self._worst) < _WORST:
            heappush(self._worst, entry)
        else:
            heappushpop(self._worst, entry)

    def show_progress(self, seconds: float) -> None:
        """Publish how long the loop has been held by now."""
        self._in_progress.set(seconds)

    def kept(self) -> list[Stall]:
        """The newest and the longest, the latter first."""
        worst = [stall for _, _, stall in list(self._worst)]
        return list({stall.id: stall for stall in [*worst, *list(self._newest)]}.values())

    def _make_place(self, labels: tuple[str, ...]) -> tuple[Number, Number]:
        return self._pair(STALLS, STALL_SECONDS, labels)

    def _make_route(self, route: str) -> tuple[Number, Number]:
        return self._pair(VICTIMS, VICTIM_SECONDS, (route,))

    def _make_duration(self, cause: str) -> Histogram:
        base = self._page.allocate(DURATION, (cause,))
        return Histogram(self._page.slots, base, DURATION.bounds)

    def _pair(
        self, first: Metric, second: Metric, labels: tuple[str, ...]
    ) -> tuple[Number, Number]:
        slots = self._page.slots
        return (
            Number(slots, self._page.allocate(first, labels)),
            Number(slots, self._page.allocate(second, labels)),
        )
