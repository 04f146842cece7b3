"""One shape for every pool: capacity, in use, idle, pending, waits, uses, and what went wrong.

Whoever wants something from a pool makes a ``Use``: it waits, then it has what it wanted, then it
is over. An adapter calls ``Meter.ask``, and of what that returns ``got`` or ``failed``, and later
``release``. While it waits, the request it belongs to is in phase ``pool_wait``.

In use, pending and the oldest of both are counted from the live uses, never by adding and
subtracting. What is over goes through one bounded queue to whoever reads, the only writer of the
slots; by then the request has been routed, so waits and uses are known by route. The rate of all
seconds of use is the mean number in use, and that of all seconds of waiting the mean number of
those who wait (Little's law), whatever the scraper misses in between.
"""

from __future__ import annotations

import weakref
from asyncio import CancelledError
from collections import deque
from collections.abc import Callable
from typing import Final

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.histogram import Histogram, Number
from loopscope.core.metric import DURATION_BOUNDS, STEP_BOUNDS, Metric
from loopscope.core.page import Page
from loopscope.core.phases import NOWHERE, POOL_WAIT, Gaps, Stay
from loopscope.sources.exchange import Exchange
from loopscope.sources.ledger import current

_BY_POOL = ("pool", "kind")
_BY_ROUTE = (*_BY_POOL, "http_route")

CAPACITY = Metric(
    "loopscope_pool_capacity", "gauge", "How many may be in use at once; absent if that is "
    "unlimited.", _BY_POOL,
)  # fmt: skip
IN_USE = Metric("loopscope_pool_in_use", "gauge", "How many are in use now.", _BY_POOL)
IDLE = Metric("loopscope_pool_idle", "gauge", "How many are there and not in use.", _BY_POOL)
PENDING = Metric("loopscope_pool_pending", "gauge", "How many are waited for now.", _BY_POOL)
OLDEST_WAIT = Metric(
    "loopscope_pool_oldest_wait_seconds",
    "gauge",
    "For how long the one that has waited longest has waited by now.",
    _BY_POOL,
    unit="seconds",
    per_worker=True,
)
OLDEST_USE = Metric(
    "loopscope_pool_oldest_use_seconds",
    "gauge",
    "For how long the one that has been in use longest has been so by now.",
    _BY_POOL,
    unit="seconds",
    per_worker=True,
)
WAIT = Metric(
    "loopscope_pool_wait_seconds",
    "histogram",
    "Time from asking to having. The rate of the sum is the mean number of those who wait.",
    _BY_POOL,
    unit="seconds",
    bounds=STEP_BOUNDS,
)
USE = Metric(
    "loopscope_pool_use_seconds",
    "histogram",
    "Time from having to giving back. The rate of the sum is the mean number in use.",
    _BY_POOL,
    unit="seconds",
    bounds=DURATION_BOUNDS,
)
CREATE = Metric(
    "loopscope_pool_create_seconds",
    "histogram",
    "Time it took to make a new one. Many of them: the pool is too small, or none at all.",
    _BY_POOL,
    unit="seconds",
    bounds=STEP_BOUNDS,
)
TIMEOUTS = Metric(
    "loopscope_pool_timeouts_total",
    "counter",
    "Who gave up waiting because it took too long.",
    _BY_POOL,
)
REJECTED = Metric(
    "loopscope_pool_rejected_total",
    "counter",
    "Who was turned away, or got an error instead.",
    _BY_POOL,
)
CANCELLED = Metric(
    "loopscope_pool_cancelled_total",
    "counter",
    "Who was cancelled while waiting.",
    _BY_POOL,
)
ROUTE_WAIT = Metric(
    "loopscope_pool_route_wait_seconds_total",
    "counter",
    "Seconds spent waiting for the pool, by the route of who waited; empty outside of requests.",
    _BY_ROUTE,
    unit="seconds",
)
ROUTE_USE = Metric(
    "loopscope_pool_route_use_seconds_total",
    "counter",
    "Seconds of use, by the route of who held it; empty outside of requests.",
    _BY_ROUTE,
    unit="seconds",
)

METRICS = (
    CAPACITY,
    IN_USE,
    IDLE,
    PENDING,
    OLDEST_WAIT,
    OLDEST_USE,
    WAIT,
    USE,
    CREATE,
    TIMEOUTS,
    REJECTED,
    CANCELLED,
    ROUTE_WAIT,
    ROUTE_USE,
)

_TIMED = {"wait": WAIT, "use": USE, "create": CREATE}
_FAILURES = {"timeout": TIMEOUTS, "rejected": REJECTED, "cancelled": CANCELLED}

MOST_POOLS: Final = 100
MOST_ROUTES: Final = 1000
"""Label sets by route, of all pools together."""
MOST_EVENTS: Final = 65_536
"""Waits and uses that are over, kept until somebody reads."""


_Event = tuple["Meter", str, float, Exchange | None]
"""What is over: of which pool, whether a wait, a use or whatever else, its seconds, and whose."""


class Use:
    """One wait for, and use of, something in a pool. For one thread at a time."""

    __slots__ = ("_asked", "_exchange", "_gaps", "_got", "_meter", "_stay")

    def __init__(self, meter: Meter, exchange: Exchange | None, now: float) -> None:
        self._meter = meter
        self._exchange = exchange
        self._asked = now
        self._got = 0.0
        self._gaps: Gaps | None = None
        self._stay: Stay | None = None
        if exchange is not None:
            self._gaps = gaps = exchange.own_gaps()
            if gaps is not None:
                gaps.enter(POOL_WAIT)
            else:  # in a thread of its own
                self._stay = stay = exchange.stay()
                if stay is not None:
                    stay.move(POOL_WAIT, now)
        meter.waiting.add(self)

    @property
    def since(self) -> float:
        """Since when it waits or, once it has what it waited for, since when it has that."""
        return self._got or self._asked

    def got(self) -> None:
        """It has what it wanted."""
        meter = self._meter
        self._got = now = meter.now()
        self._stop_waiting(now)
        meter.held.add(self)
        meter.over("wait", now - self._asked, self._exchange)

    def failed(self, error: BaseException) -> None:
        """It will not have it."""
        meter = self._meter
        now = meter.now()
        self._stop_waiting(now)
        meter.over(_kind_of(error), now - self._asked, self._exchange)

    def release(self) -> None:
        """It has given back what it had. Twice is once."""
        meter = self._meter
        if self in meter.held:
            meter.held.discard(self)
            meter.over("use", meter.now() - self._got, self._exchange)

    def _stop_waiting(self, now: float) -> None:
        self._meter.waiting.discard(self)
        if self._gaps is not None:
            self._gaps.leave(POOL_WAIT)
            self._gaps = None
        elif self._stay is not None:
            self._stay.move(NOWHERE, now)
            self._stay = None


class Meter:
    """What is measured of one pool. ``capacity`` and ``idle`` read the pool; None: not known."""

    def __init__(
        self,
        book: PoolBook,
        labels: tuple[str, str],
        pool: object,
        capacity: Callable[[], float | None],
        idle: Callable[[], float | None],
    ) -> None:
        self.labels = labels
        self.capacity = capacity
        self.idle = idle
        self.waiting: set[Use] = set()
        self.held: set[Use] = set()
        self.now = book.now
        self.book = book
        self.alive = weakref.ref(pool)

    def ask(self) -> Use:
        """Somebody wants something from the pool."""
        return Use(self, current(), self.now())

    def over(self, kind: str, seconds: float, exchange: Exchange | None) -> None:
        """A wait, a use or an attempt to make a new one is over."""
        events = self.book.events
        if len(events) < MOST_EVENTS:
            events.append((self, kind, seconds, exchange))
        else:
            self.book.lost += 1


class PoolBook:
    """All pools of the process. Any thread may measure; only one at a time may ``refresh``."""

    def __init__(self, page: Page, now: Callable[[], float]) -> None:
        self.now = now
        self.events: deque[_Event] = deque()
        self.lost = 0
        """How many were over that could not be kept."""
        self._page = page
        self._meters: list[Meter] = []
        self._numbers: Budget[tuple[Metric, tuple[str, ...]], Number] = Budget(
            MOST_POOLS * len(METRICS) + MOST_ROUTES, self._make_number, lambda: None
        )
        self._histograms: Budget[tuple[Metric, tuple[str, ...]], Histogram] = Budget(
            3 * MOST_POOLS, self._make_histogram, lambda: None
        )
        self._routes: set[tuple[str, ...]] = set()

    def meter(
        self,
        pool: object,
        name: str,
        kind: str,
        capacity: Callable[[], float | None],
        idle: Callable[[], float | None],
    ) -> Meter:
        """A meter for ``pool``, which is held weakly: when it goes, its gauges go to zero.

        Pools of one name and kind that are there at one time get numbers: ``name``, ``name #2``.
        """
        taken = {meter.labels[0] for meter in self._meters if meter.alive() is not None}
        unique = name
        for number in range(2, len(taken) + 3):
            if unique not in taken:
                break
            unique = f"{name} #{number}"
        meter = Meter(self, (unique, kind), pool, capacity, idle)
        self._meters.append(meter)
        return meter

    def refresh(self) -> None:
        """Publish what is over and what is there."""
        for _ in range(len(self.events)):
            self._count(self.events.popleft())
        now = self.now()
        for meter in self._meters:
            self._show(meter, now)
        self._meters = [meter for meter in self._meters if meter.alive() is not None or meter.held]

    def _count(self, event: _Event) -> None:
        meter, kind, seconds, exchange = event
        metric = _TIMED.get(kind)
        if metric is not None:
            histogram = self._histograms.admit((metric, meter.labels))
            if histogram is not None:
                histogram.observe(seconds)
        else:
            self._add(_FAILURES[kind], meter.labels, 1.0)
        if kind != "create":
            route = "" if exchange is None else exchange.route_so_far()
            labels = self._by_route(meter.labels, route)
            self._add(ROUTE_USE if kind == "use" else ROUTE_WAIT, labels, seconds)

    def _by_route(self, labels: tuple[str, str], route: str) -> tuple[str, ...]:
        found = (*labels, route)
        if found not in self._routes:
            if len(self._routes) >= MOST_ROUTES:
                return (*labels, OVERFLOW)
            self._routes.add(found)
        return found

    def _show(self, meter: Meter, now: float) -> None:
        waiting, held = list(meter.waiting), list(meter.held)
        is_there = meter.alive() is not None
        capacity, idle = (meter.capacity(), meter.idle()) if is_there else (0.0, 0.0)
        if capacity is not None:
            self._set(CAPACITY, meter, capacity)
        if idle is not None:
            self._set(IDLE, meter, idle)
        self._set(IN_USE, meter, len(held))
        self._set(PENDING, meter, len(waiting))
        self._set(OLDEST_WAIT, meter, max((now - use.since for use in waiting), default=0.0))
        self._set(OLDEST_USE, meter, max((now - use.since for use in held), default=0.0))

    def _set(self, metric: Metric, meter: Meter, value: float) -> None:
        number = self._numbers.admit((metric, meter.labels))
        if number is not None:
            number.set(value)

    def _add(self, metric: Metric, labels: tuple[str, ...], value: float) -> None:
        number = self._numbers.admit((metric, labels))
        if number is not None:
            number.add(value)

    def _make_number(self, key: tuple[Metric, tuple[str, ...]]) -> Number:
        return Number(self._page.slots, self._page.allocate(*key))

    def _make_histogram(self, key: tuple[Metric, tuple[str, ...]]) -> Histogram:
        return Histogram(self._page.slots, self._page.allocate(*key), key[0].bounds)


def _kind_of(error: BaseException) -> str:
    if isinstance(error, CancelledError | GeneratorExit):
        return "cancelled"
    # Libraries have timeouts of their own, most of them not TimeoutError's children.
    return "timeout" if "Timeout" in type(error).__name__ else "rejected"
