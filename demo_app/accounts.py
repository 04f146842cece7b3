"""What became of each route's seconds: their phases, and what they were awaited for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from demo_app.figures import Figures, Kind, RouteFigures
from demo_app.scenarios import Endpoint
from demo_app.scrape import Window

_SHARE_OFF = 0.01
_SECONDS_OFF = 0.0001
"""A request; clocks are read at slightly different moments."""


class Phase(NamedTuple):
    """A phase as ``loopscope_request_phase_seconds_total`` names it, and in short words."""

    name: str
    words: str


PHASES = (
    Phase("loop_run", "loop run"),
    Phase("loop_wait", "loop wait"),
    Phase("pool_wait", "pool wait"),
    Phase("thread_wait", "thread wait"),
    Phase("thread_run", "thread run"),
    Phase("client_upload", "client upload"),
    Phase("client_download", "client download"),
    Phase("await_other", "other awaits"),
)
"""All that make up a duration, in the order in which they are drawn."""


class Gap(NamedTuple):
    """A route whose phases do not add up to its duration; seconds, of so many requests."""

    endpoint: Endpoint
    requests: int
    lasted: float
    in_phases: float

    def __str__(self) -> str:
        """Both figures, with the endpoint they belong to."""
        return (
            f"{' '.join(self.endpoint)}: {self.in_phases:.3f} s in phases, {self.lasted:.3f} s "
            f"of {self.requests:,} requests."
        )


@dataclass(frozen=True)
class Awaited:
    """What one line of one route was waiting for, in seconds and as a share of its duration.

    Tasks wait at one time, and each wait counts: a share may be above 1.
    """

    route: str
    site: str
    callee: str
    seconds: float
    waits: int
    share: float


def in_phases(route: RouteFigures) -> float:
    """Seconds of all phases of a route; one that is negative adds nothing."""
    return sum(max(0.0, seconds) for seconds in route.phases.values())


def gaps(figures: Figures) -> list[Gap]:
    """Every route whose phases are off by more than 1 % and more than 0.1 ms a request.

    Off are also seconds below zero: the agent takes ``await_other`` to be what the others leave of
    the duration, so moments counted twice do not make the sum larger, but this phase negative.
    """
    found: list[Gap] = []
    for route in accounted(figures):
        summed = in_phases(route)
        allowed = max(_SHARE_OFF * route.spent_s, _SECONDS_OFF * route.requests)
        if not abs(summed - route.spent_s) <= allowed:  # nor is what is no number
            found.append(Gap(route.endpoint, route.requests, route.spent_s, summed))
    return found


def accounted(figures: Figures) -> list[RouteFigures]:
    """Routes that have phases, which WebSockets have not; most seconds a request first."""
    routes = [route for route in figures.routes if route.kind is not Kind.WEBSOCKET]
    return sorted(routes, key=lambda route: route.spent_s / route.requests, reverse=True)


def in_use(routes: Iterable[RouteFigures]) -> list[Phase]:
    """The phases in which any of the routes was for a moment."""
    spent = {name for route in routes for name, seconds in route.phases.items() if seconds}
    return [phase for phase in PHASES if phase.name in spent]


def awaits(window: Window, figures: Figures) -> list[Awaited]:
    """What requests awaited for longest, by route, line and call; streams, meant to, left out."""
    lasted = _lasted(figures)
    labels = ("http_route", "site", "callee")
    waits = window.sums("loopscope_await_count_total", *labels)
    seconds = window.sums("loopscope_await_seconds_total", *labels)
    found = [
        Awaited(route, site, callee, each, round(waits[route, site, callee]), each / lasted[route])
        for (route, site, callee), each in seconds.items()
        if each and lasted.get(route)
    ]
    return sorted(found, key=lambda wait: wait.seconds, reverse=True)


def savings(sequences: Sequence[Mapping[str, Any]], figures: Figures) -> Iterator[str]:
    """What ``/api/awaits`` calls sequential, and how much less its routes' requests could take."""
    requests = {route.endpoint.route: route.requests for route in figures.routes}
    for each in sequences:
        sites = len(set(each["sites"]))
        lines = "one line" if sites == 1 else f"{sites} lines"
        a_request = each["saved_at_most_s"] / each["requests"] * 1_000
        yield (
            f"{each['location']} ({each['route']}) awaits one thing after the other at {lines}, "
            f"in {each['requests']:,} of {requests.get(each['route'], 0):,} requests: a gather "
            f"would save {a_request:,.0f} ms a request at most."
        )


def bounds(window: Window, figures: Figures) -> Iterator[str]:
    """How much of the phases is an upper bound, if any is."""
    bound = window.total("loopscope_request_loop_wait_estimated_seconds_total")
    if bound:
        waited = sum(route.phases.get("loop_wait", 0.0) for route in figures.routes)
        yield (
            f"Of {waited:.2f} s loop wait, {bound:.2f} s are an upper bound: requests that ran "
            "just after a stall, and may have become ready during it."
        )


def outliving(window: Window) -> Iterator[str]:
    """Which routes left tasks behind."""
    tasks = window.sums(
        "loopscope_request_tasks_outliving_total", "http_request_method", "http_route"
    )
    for endpoint, count in tasks.items():
        if count:
            yield f"{' '.join(endpoint)}: {count:,.0f} tasks outlived the request that made them."


def _lasted(figures: Figures) -> dict[str, float]:
    """Seconds of all requests by route, whatever their method."""
    lasted: dict[str, float] = {}
    for route in figures.routes:
        if route.kind is Kind.REQUEST:
            path = route.endpoint.route
            lasted[path] = lasted.get(path, 0.0) + route.spent_s
    return lasted
