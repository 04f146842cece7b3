"""What is published of every pool, whichever library's: names, labels, units."""

from __future__ import annotations

from typing import Final

from loopscope.core.metric import DURATION_BOUNDS, STEP_BOUNDS, Metric

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
LEAKED = Metric(
    "loopscope_pool_leaked",
    "gauge",
    "How many are in use that should not be: by a request that has ended (request_ended), or for "
    "longer than the setting leak_after (held_too_long).",
    (*_BY_POOL, "reason"),
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
CREATIONS = Metric(
    "loopscope_pool_creations_total",
    "counter",
    "How many new ones were made, by the route and the line of the service's code that had them "
    "made; both empty where it was nobody's.",
    (*_BY_ROUTE, "site"),
)

METRICS: Final = (
    CAPACITY,
    IN_USE,
    IDLE,
    PENDING,
    OLDEST_WAIT,
    OLDEST_USE,
    LEAKED,
    WAIT,
    USE,
    CREATE,
    TIMEOUTS,
    REJECTED,
    CANCELLED,
    ROUTE_WAIT,
    ROUTE_USE,
    CREATIONS,
)
