"""How close each pool was to its limit, who held it, and what was lost of it. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from demo_app.figures import Figures
from demo_app.histogram import EMPTY, Histogram
from demo_app.scrape import Window

_FULL = 0.5
"""The share of a pool in use on average from which on it is remarked upon."""
_QUEUE = 1.0
"""How many waited on average, likewise."""
_FAILURES = ("timeouts", "rejected", "cancelled")
_CHURN = 0.5
"""Connections made for each request of a route: from here on it has none kept for it."""
_CONNECTIONS = ("db.", "cache.", "http.")
"""Kinds of pools in which there are connections."""
_MOST_BUSY = 3


class Id(NamedTuple):
    """A pool's name and kind, as its metrics have them."""

    pool: str
    kind: str


@dataclass(frozen=True)
class PoolFigures:
    """One pool in one window. Times in seconds."""

    id: Id
    seconds: float
    capacity: float | None
    """None where there is no limit."""
    wait: Histogram
    waited: Mapping[str, float]
    """Seconds by route, also of those who did not get what they waited for; "" is no request."""
    used: Mapping[str, float]
    """Seconds by route, also of what is still in use."""
    made: int
    not_obtained: int
    leaked: int

    @property
    def in_use(self) -> float:
        """How many were in use on average: seconds of use in a second (Little's law)."""
        return sum(self.used.values()) / self.seconds

    @property
    def share(self) -> float | None:
        """The part of the capacity that was in use on average, 0 to 1."""
        return self.in_use / self.capacity if self.capacity else None

    @property
    def waiting(self) -> float:
        """How many were waiting on average."""
        return sum(self.waited.values()) / self.seconds

    @property
    def rate(self) -> float:
        """Uses begun, a second."""
        return self.wait.count / self.seconds

    @property
    def is_idle(self) -> bool:
        """Whether nothing has happened."""
        counts = (self.wait.count, self.made, self.not_obtained, self.leaked)
        return not any((*counts, *self.used.values()))


Documents = Sequence[Mapping[str, Any]]
"""What ``/api/pools`` says at the end of a window."""


def read(window: Window, documents: Documents) -> list[PoolFigures]:
    """Every pool in which anything has happened, the one most waited for first.

    What is still in use is in no counter yet; the ``documents`` know it, if these are not many.
    """
    held = _held(window, documents)
    found = [_pool(window, id_, held.get(id_, {})) for id_ in _ids(window)]
    return sorted(
        (pool for pool in found if not pool.is_idle),
        key=lambda pool: (-pool.waiting, -pool.in_use, pool.id),
    )


def remarks(
    pools: Sequence[PoolFigures],
    window: Window,
    figures: Figures,
    documents: Documents,
) -> Iterator[str]:
    """Which pools are busy and with what, who makes connections, and what was not given back."""
    busy = [pool for pool in pools if _is_busy(pool)]
    for pool in busy[:_MOST_BUSY]:
        yield _busy(pool, figures)
    yield from _churn(window, figures)
    yield from _lost(documents)


def _ids(window: Window) -> set[Id]:
    names = {
        *window.sums("loopscope_pool_wait_seconds_count", *Id._fields),
        *window.sums("loopscope_pool_route_use_seconds_total", *Id._fields),
        *window.sums("loopscope_pool_creations_total", *Id._fields),
        *window.values("loopscope_pool_leaked", *Id._fields),
        *(id_ for what in _FAILURES for id_ in window.sums(_failures(what), *Id._fields)),
    }
    return {Id(*name) for name in names}


def _held(window: Window, documents: Documents) -> dict[Id, dict[str, float]]:
    """Seconds of the window by pool and route, of what is still in use."""
    seconds: defaultdict[Id, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for document in documents:
        for use in document["held"]:
            id_ = Id(document["pool"], document["kind"])
            seconds[id_][use["route"]] += min(use["age_s"], window.seconds)
    return seconds


def _pool(window: Window, id_: Id, held: Mapping[str, float]) -> PoolFigures:
    return PoolFigures(
        id_,
        window.seconds,
        window.values("loopscope_pool_capacity", *Id._fields).get(id_) or None,  # 0: it is gone
        window.histograms("loopscope_pool_wait_seconds", *Id._fields).get(id_, EMPTY),
        _by_route(window, "loopscope_pool_route_wait_seconds_total", id_),
        _added(_by_route(window, "loopscope_pool_route_use_seconds_total", id_), held),
        _count(window.sums("loopscope_pool_creations_total", *Id._fields), id_),
        sum(_count(window.sums(_failures(what), *Id._fields), id_) for what in _FAILURES),
        _count(window.values("loopscope_pool_leaked", *Id._fields), id_),
    )


def _failures(what: str) -> str:
    return f"loopscope_pool_{what}_total"


def _count(sums: Mapping[tuple[str, ...], float], id_: Id) -> int:
    return round(sums.get(id_, 0.0))


def _by_route(window: Window, name: str, id_: Id) -> dict[str, float]:
    sums = window.sums(name, *Id._fields, "http_route")
    return {route: seconds for (*of, route), seconds in sums.items() if Id(*of) == id_ and seconds}


def _added(some: Mapping[str, float], more: Mapping[str, float]) -> dict[str, float]:
    return {route: some.get(route, 0.0) + more.get(route, 0.0) for route in {*some, *more}}


def _is_busy(pool: PoolFigures) -> bool:
    return pool.share is not None and (pool.share >= _FULL or pool.waiting >= _QUEUE)


def _busy(pool: PoolFigures, figures: Figures) -> str:
    """How full it is, who holds it, and who waits."""
    said = f"{pool.id.pool}: {pool.in_use:.1f} of {pool.capacity:g} in use on average"
    if pool.used:
        holder, share = _most(pool.used)
        said += f"; {_named(holder, figures)} held {share:.0%} of it"
    if pool.waiting >= _QUEUE / 2:
        waiter, share = _most(pool.waited)
        waited = sum(pool.waited.values())
        said += f"; {_named(waiter, figures)} waited longest, {share:.0%} of {waited:,.1f} s"
    return f"{said}."


def _most(seconds: Mapping[str, float]) -> tuple[str, float]:
    """The route with most of the seconds, and its share of them."""
    route = max(seconds, key=seconds.__getitem__)
    return route, seconds[route] / sum(seconds.values())


def _churn(window: Window, figures: Figures) -> Iterator[str]:
    """Routes that have about one made for each of their requests."""
    requests: defaultdict[str, int] = defaultdict(int)
    for route in figures.routes:
        requests[route.endpoint.route] += route.requests
    made = window.sums("loopscope_pool_creations_total", "kind", "http_route", "site")
    for (kind, path, site), count in sorted(made.items(), key=lambda each: -each[1]):
        each = count / requests[path] if requests[path] else 0.0
        if kind.startswith(_CONNECTIONS) and each >= _CHURN:
            at = f" at {site}" if site else ""
            yield f"{_named(path, figures)} opens a connection per request ({each:.1f}){at}."


def _lost(documents: Documents) -> Iterator[str]:
    for document in documents:
        sites = Counter((use["site"], use["route"]) for use in document["held"] if use["leaked"])
        for (site, route), count in sites.items():
            of = f" ({route})" if route else ""
            where = f", taken at {site}{of}" if site else of
            yield f"{document['pool']}: {count} not given back{where}."


def _named(route: str, figures: Figures) -> str:
    """A route with its method, if it has one only."""
    methods = {each.endpoint.method for each in figures.routes if each.endpoint.route == route}
    if len(methods) == 1:
        return f"{methods.pop()} {route}"
    return route or "what is no request"
