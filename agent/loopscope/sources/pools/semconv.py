"""Database pools as OpenTelemetry's conventions name them: ``db.client.connection.*``.

The figures are those of the uniform shape; nothing is counted twice. Only the names and labels
differ, so these families are made where pages are read, of the very same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

from loopscope.core.merge import Family
from loopscope.core.metric import Metric
from loopscope.sources.pools import metrics

_POOL = ("db_client_connection_pool_name",)
_STATE = "db_client_connection_state"

COUNT = Metric(
    "db_client_connection_count",
    "gauge",
    "Connections that are there, by whether they are idle or used.",
    (*_POOL, _STATE),
)
MAX = Metric("db_client_connection_max", "gauge", "The most connections there may be.", _POOL)
PENDING = Metric(
    "db_client_connection_pending_requests",
    "gauge",
    "How many wait for a connection.",
    _POOL,
)
TIMEOUTS = Metric(
    "db_client_connection_timeouts_total",
    "counter",
    "How many gave up waiting for a connection because it took too long.",
    _POOL,
)


def _timed(name: str, of: Metric, help_text: str) -> Metric:
    return Metric(
        f"db_client_connection_{name}_seconds",
        "histogram",
        help_text,
        _POOL,
        unit="seconds",
        bounds=of.bounds,
    )


CREATE_TIME = _timed("create_time", metrics.CREATE, "Time it took to make a new connection.")
WAIT_TIME = _timed("wait_time", metrics.WAIT, "Time it took to obtain an open connection.")
USE_TIME = _timed("use_time", metrics.USE, "Time between borrowing a connection and returning it.")

METRICS = (COUNT, MAX, PENDING, TIMEOUTS, CREATE_TIME, WAIT_TIME, USE_TIME)

_FROM = {
    metrics.IDLE.name: (COUNT, ("idle",)),
    metrics.IN_USE.name: (COUNT, ("used",)),
    metrics.CAPACITY.name: (MAX, ()),
    metrics.PENDING.name: (PENDING, ()),
    metrics.TIMEOUTS.name: (TIMEOUTS, ()),
    metrics.CREATE.name: (CREATE_TIME, ()),
    metrics.WAIT.name: (WAIT_TIME, ()),
    metrics.USE.name: (USE_TIME, ()),
}
"""Which of our families each is made of, and with what values of further labels."""


def db_client(families: Iterable[Family]) -> list[Family]:
    """The database pools in ``families`` once more, by the conventions' names."""
    made: dict[str, Family] = {}
    for family in families:
        metric, more = _FROM.get(family.metric.name, (None, ()))
        if metric is not None:
            target = made.setdefault(metric.name, Family(metric, metric.labels))
            for (name, kind, *_), raw in family.rows.items():
                if kind.startswith("db."):
                    labels = (name, *more)  # pools of one name and several libraries are added up
                    target.rows[labels] = target.rows.get(labels, ()) + raw
    return [family for family in made.values() if family.rows]
