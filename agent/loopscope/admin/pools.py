"""``/api/pools``: every pool in one shape, as published.

::

    {"pools": [{"pool", "kind", "capacity", "in_use", "idle", "pending",
                "oldest_wait_s", "oldest_use_s",
                "wait": {"count", "seconds"}, "use": {"count", "seconds"},
                "create": {"count", "seconds"}, "timeouts", "rejected", "cancelled",
                "routes": [{"route", "wait_s", "use_s"}]}]}

What is not known of a pool is null. Those with most seconds of waiting come first, and of each the
routes that used it most.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from loopscope.agent import Agent
from loopscope.core.merge import Family
from loopscope.sources.pools import metrics

_GAUGES = {
    "capacity": metrics.CAPACITY,
    "in_use": metrics.IN_USE,
    "idle": metrics.IDLE,
    "pending": metrics.PENDING,
}
_OLDEST = {"oldest_wait_s": metrics.OLDEST_WAIT, "oldest_use_s": metrics.OLDEST_USE}
_HISTOGRAMS = {"wait": metrics.WAIT, "use": metrics.USE, "create": metrics.CREATE}
_COUNTERS = {
    "timeouts": metrics.TIMEOUTS,
    "rejected": metrics.REJECTED,
    "cancelled": metrics.CANCELLED,
}
_BY_ROUTE = {"wait_s": metrics.ROUTE_WAIT, "use_s": metrics.ROUTE_USE}


def pools(agent: Agent) -> dict[str, Any]:
    """The document above, as of now."""
    families = {family.metric.name: family for family in agent.snapshot()}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for key, metric in _GAUGES.items():
        for labels, values in _rows(families.get(metric.name)):
            _of(found, labels)[key] = values[0]
    for key, metric in _OLDEST.items():  # one a worker
        for labels, values in _rows(families.get(metric.name)):
            pool = _of(found, labels)
            pool[key] = max(pool[key], values[0])
    for key, metric in _HISTOGRAMS.items():
        for labels, (*buckets, total) in _rows(families.get(metric.name)):
            _of(found, labels)[key] = {"count": sum(buckets), "seconds": total}
    for key, metric in _COUNTERS.items():
        for labels, values in _rows(families.get(metric.name)):
            _of(found, labels)[key] = values[0]
    for labels, routes in _routes(families).items():
        _of(found, labels)["routes"] = routes
    by_waiting = sorted(found.values(), key=lambda pool: pool["wait"]["seconds"], reverse=True)
    return {"pools": by_waiting}


def _rows(family: Family | None) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    if family is not None:
        for labels, raw in family.rows.items():
            yield labels, tuple(family.values(raw))


def _of(found: dict[tuple[str, str], dict[str, Any]], labels: tuple[str, ...]) -> dict[str, Any]:
    name, kind = labels[:2]
    nothing: dict[str, Any] = {key: {"count": 0.0, "seconds": 0.0} for key in _HISTOGRAMS}
    return found.setdefault(
        (name, kind),
        {
            "pool": name,
            "kind": kind,
            **dict.fromkeys(_GAUGES),
            **dict.fromkeys(_OLDEST, 0.0),
            **nothing,
            **dict.fromkeys(_COUNTERS, 0.0),
            "routes": [],
        },
    )


def _routes(families: dict[str, Family]) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Waiting and use by pool and route."""
    seconds: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(
        lambda: dict.fromkeys(_BY_ROUTE, 0.0)
    )
    for key, metric in _BY_ROUTE.items():
        for labels, values in _rows(families.get(metric.name)):
            seconds[labels][key] = values[0]
    routes: defaultdict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for (name, kind, route), sums in seconds.items():
        routes[name, kind].append({"route": route, **sums})
    for of_pool in routes.values():
        of_pool.sort(key=lambda route: route["use_s"], reverse=True)
    return dict(routes)
