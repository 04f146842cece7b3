"""All pools of the process: who has them measured, and what is published of them.

What is over goes through bounded queues to whoever reads, the only writer of the slots; by then the
request has been routed, so waits and uses are known by route. What is alike is added up first: to
publish each by itself would take longer than to record it.

The rate of all seconds of use is the mean number in use, and that of all seconds of waiting the
mean number of those who wait (Little's law), whatever the scraper misses in between.
"""

from __future__ import annotations

import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from threading import Lock
from typing import Any, Final, get_args

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.faults import Faults
from loopscope.core.histogram import Histogram, Number
from loopscope.core.leak import Leak, Reason
from loopscope.core.metric import Metric
from loopscope.core.page import Page
from loopscope.core.stacks import Place, UserCode
from loopscope.sources.exchange import Exchange
from loopscope.sources.pools import metrics
from loopscope.sources.pools.meter import Level, Meter, Series
from loopscope.sources.pools.use import Use

_TIMED = {"wait": metrics.WAIT, "use": metrics.USE, "create": metrics.CREATE}
_FAILURES = {
    "timeout": metrics.TIMEOUTS,
    "rejected": metrics.REJECTED,
    "cancelled": metrics.CANCELLED,
}

MOST_POOLS: Final = 100
MOST_ROUTES: Final = 1000
"""Label sets by route, or by route and line, of all pools together."""
MOST_EVENTS: Final = 65_536
"""Waits, uses and other things that are over, of each so many kept until somebody reads."""
MOST_ALIKE: Final = 5
"""Pools of one name that are told apart; all further ones are one."""
_FOLDED_AT_ONCE = 4000
"""Of each, a few milliseconds' work: for more, whoever folds now and then has to come again."""
_SETTLED = 1.0
"""Seconds after which whose a use is has been decided."""

_Event = tuple[Meter, str, float, Exchange | str, Place | None]
"""What is over: of which pool, whether a wait, a use or whatever else, its seconds, and whose."""
_Alike = defaultdict[tuple[Meter, str, str], list[float]]
"""The seconds of events, by pool, kind and route."""
_Labels = tuple[str, ...]
_Key = tuple[Metric, _Labels]


class PoolBook:
    """All pools of the process. Any thread may measure, fold and refresh.

    ``leak_after`` are the seconds from which on a use counts as a leak; ``on_leak`` hears of each,
    once.
    """

    def __init__(
        self,
        page: Page,
        now: Callable[[], float],
        users: UserCode,
        faults: Faults,
        *,
        leak_after: float,
        on_leak: Callable[[Leak], None],
    ) -> None:
        self.now = now
        self.users = users
        self.waits: deque[Use] = deque()
        """Those that have got what they waited for."""
        self.uses: deque[Use] = deque()
        """Those that have given back what they had."""
        self.events: deque[_Event] = deque()
        """All else that is over."""
        self.most_events = MOST_EVENTS
        self.lost = 0
        """How many were over that could not be kept."""
        self._page = page
        self._faults = faults
        self._leak_after = leak_after
        self._on_leak = on_leak
        self._meters: dict[Meter, None] = {}
        """In the order they were made. Of clients made for each request there may be thousands."""
        self._named: dict[_Labels, Meter] = {}
        """The latest of each name."""
        self._unpooled: dict[tuple[str, str], Meter] = {}
        self._reading = Lock()
        self._shown: dict[_Key, float] = {}
        self._numbers: Budget[_Key, Number] = Budget(
            MOST_POOLS * len(metrics.METRICS) + MOST_ROUTES, self._make_number, lambda: None
        )
        self._histograms: Budget[_Key, Histogram] = Budget(
            len(_TIMED) * MOST_POOLS, self._make_histogram, lambda: None
        )
        self._routes: set[_Labels] = set()

    def meter(self, pool: Any, name: str, kind: str, level: Callable[[Any], Level | None]) -> Meter:
        """A meter for ``pool``, which is held weakly: when it goes, its gauges go to zero.

        Pools of one name and kind that are there at one time get numbers: ``name``, ``name #2``.
        """
        there = weakref.ref(pool)

        def level_now() -> Level | None:
            found = there()
            return None if found is None else level(found)

        return self.watch(name, kind, level_now, counted=True)

    def watch(
        self, name: str, kind: str, level: Callable[[], Level | None], *, counted: bool = False
    ) -> Meter:
        """A meter for what ``level`` says; it is forgotten when that says None.

        Of what is not ``counted`` by the meter's uses, no more is published than that.
        """
        meter = Meter(self, (self._unique(name, kind), kind), level, is_counted=counted)
        self._meters[meter] = None
        self._named[meter.labels] = meter
        return meter

    def unpooled(self, address: str, kind: str) -> Meter:
        """The meter for all connections to ``address`` that no pool has made."""
        known = self._unpooled.get((address, kind))
        if known is None:
            if len(self._unpooled) >= MOST_POOLS:
                address = OVERFLOW
            known = self.watch(f"{address} (no pool)", kind, Level, counted=True)
            self._unpooled[address, kind] = known
        return known

    def fold(self, at_most: int = _FOLDED_AT_ONCE) -> None:
        """Publish what is over, as much of it; nothing if somebody else is just at it."""
        if self._reading.acquire(blocking=False):
            try:
                self._fold(at_most)
            finally:
                self._reading.release()

    def refresh(self) -> None:
        """Publish what is over and what is there."""
        with self._reading:
            self._fold(MOST_EVENTS)
            self._show_all(self.now())

    def held(self) -> list[Use]:
        """All that is in use, longest first. From any thread."""
        uses = [use for meter in list(self._meters) for use in meter.held]
        return sorted(uses, key=lambda use: use.since)

    def _unique(self, name: str, kind: str) -> str:
        unique = name
        for number in range(2, MOST_ALIKE):
            if self._is_free(unique, kind):
                return unique
            unique = f"{name} #{number}"
        return unique if self._is_free(unique, kind) else f"{name} #{MOST_ALIKE}+"

    def _is_free(self, name: str, kind: str) -> bool:
        latest = self._named.get((name, kind))
        return latest is None or self._level(latest) is None

    def _fold(self, at_most: int) -> None:
        alike: _Alike = defaultdict(list)
        try:
            self._take(at_most, alike)
        finally:  # what has been taken is nowhere else
            for (meter, kind, route), each in alike.items():
                self._count(meter, kind, route, each)

    def _take(self, at_most: int, alike: _Alike) -> None:
        """Take what is over out of the queues, and put it to what is ``alike``."""
        routes = _Routes()
        waits, uses, events = self.waits, self.uses, self.events
        for _ in range(min(len(waits), at_most)):
            use = waits.popleft()
            route = routes[use.owner]
            alike[use.meter, "wait", route].append(use.began - use.asked)
        for _ in range(min(len(uses), at_most)):
            use = uses.popleft()
            route = routes[use.owner]
            alike[use.meter, "use", route].append(use.ended - use.began)
        for _ in range(min(len(events), at_most)):
            meter, kind, seconds, owner, place = events.popleft()
            route = routes[owner]
            alike[meter, kind, route].append(seconds)
            if kind == "create":
                labels = self._bounded(*meter.labels, route, self.users.describe_place(place))
                self._add(metrics.CREATIONS, labels, 1.0)

    def _count(self, meter: Meter, kind: str, route: str, each: list[float]) -> None:
        """Publish the seconds of ``each`` event of a kind."""
        seconds = sum(each)
        timed, by_route = meter.series.get((kind, route)) or self._series(
            meter, kind, seconds, route
        )
        if timed is not None:
            timed.observe_all(each)
        elif kind in _FAILURES:
            self._add(_FAILURES[kind], meter.labels, len(each))
        if by_route is not None:
            by_route.add(seconds)

    def _series(self, meter: Meter, kind: str, seconds: float, route: str) -> Series:
        """Where the seconds of such events go: asked once for each kind and route of a pool."""
        timed = by_route = None
        if kind in _TIMED:
            timed = self._histograms.admit((_TIMED[kind], meter.labels))
        if kind != "create" and seconds:
            labels = self._bounded(*meter.labels, route)
            metric = metrics.ROUTE_USE if kind == "use" else metrics.ROUTE_WAIT
            by_route = self._numbers.admit((metric, labels))
            if timed is not None and by_route is not None and labels[-1] == route:
                meter.series[kind, route] = timed, by_route
        return timed, by_route

    def _bounded(self, name: str, kind: str, *rest: str) -> _Labels:
        found = (name, kind, *rest)
        if found not in self._routes:
            if len(self._routes) >= MOST_ROUTES:
                return (name, kind, *[OVERFLOW] * len(rest))
            self._routes.add(found)
        return found

    def _show_all(self, now: float) -> None:
        shown = dict.fromkeys(self._shown, 0.0)
        for meter in list(self._meters):
            level = self._level(meter)
            if level is None:
                self._forget(meter)
            else:
                self._show(meter, level, now, shown)
        self._shown = {}
        for key, value in shown.items():
            number = self._numbers.admit(key)
            if number is not None:
                number.set(value)
                self._shown[key] = value

    def _level(self, meter: Meter) -> Level | None:
        try:
            return meter.level()
        except Exception as error:
            self._faults.report(f"pools.{meter.labels[1]}", error)
            return Level()

    def _forget(self, meter: Meter) -> None:
        """The pool is gone, and with it whatever anybody still had of it."""
        meter.is_forgotten = True
        self._meters.pop(meter, None)
        if self._named.get(meter.labels) is meter:
            del self._named[meter.labels]
        for use in meter.held:
            use.release()

    def _show(self, meter: Meter, level: Level, now: float, shown: dict[_Key, float]) -> None:
        """Add what there is of one pool to what is ``shown``: several may go by one name."""
        waiting, held = meter.waiting, meter.held
        if meter.is_counted:
            level = level.counted(in_use=len(held), pending=len(waiting))
            self._show_ages(meter, waiting, held, now, shown)
        for metric, value in (
            (metrics.CAPACITY, level.capacity),
            (metrics.IN_USE, level.in_use),
            (metrics.IDLE, level.idle),
            (metrics.PENDING, level.pending),
        ):
            if value is not None:
                shown[metric, meter.labels] = shown.get((metric, meter.labels), 0.0) + value

    def _show_ages(
        self,
        meter: Meter,
        waiting: set[Use],
        held: set[Use],
        now: float,
        shown: dict[_Key, float],
    ) -> None:
        """Add what the uses that have not ended tell: how old they are, and which are leaks."""
        for metric, uses in ((metrics.OLDEST_WAIT, waiting), (metrics.OLDEST_USE, held)):
            oldest = max((now - use.since for use in uses), default=0.0)
            shown[metric, meter.labels] = max(shown.get((metric, meter.labels), 0.0), oldest)
        for reason in get_args(Reason):
            shown.setdefault((metrics.LEAKED, (*meter.labels, reason)), 0.0)
        for use in held:
            if now - use.since >= _SETTLED:
                self._look_for_leak(use, now, shown)

    def _look_for_leak(self, use: Use, now: float, shown: dict[_Key, float]) -> None:
        use.settle()
        is_news = use.look(now, self._leak_after)
        if use.leaked is not None:
            shown[metrics.LEAKED, (*use.meter.labels, use.leaked)] += 1
            if is_news:
                site = self.users.describe_place(use.place)
                held = now - use.since
                self._on_leak(Leak(*use.meter.labels, use.leaked, site, use.route, held))

    def _add(self, metric: Metric, labels: _Labels, value: float) -> None:
        number = self._numbers.admit((metric, labels))
        if number is not None:
            number.add(value)

    def _make_number(self, key: _Key) -> Number:
        return Number(self._page.slots, self._page.allocate(*key))

    def _make_histogram(self, key: _Key) -> Histogram:
        return Histogram(self._page.slots, self._page.allocate(*key), key[0].bounds)


class _Routes(dict[Exchange | str, str]):
    """The route of whoever something belonged to, each resolved once."""

    def __missing__(self, owner: Exchange | str) -> str:
        route = owner if isinstance(owner, str) else owner.route_so_far()
        self[owner] = route
        return route
