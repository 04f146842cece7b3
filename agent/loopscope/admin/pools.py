"""``/api/pools``: every pool in one shape, as published.

::

    {"pools": [{"pool", "kind", "capacity", "in_use", "idle", "pending",
                "oldest_wait_s", "oldest_use_s",
                "wait": {"count", "seconds"}, "use": {"count", "seconds"},
                "create": {"count", "seconds"}, "timeouts", "rejected", "cancelled",
                "leaked": {"request_ended", "held_too_long"},
                "routes": [{"route", "wait_s", "use_s"}],
                "creations": [{"route", "site", "count"}],
                "held": [{"worker" (its number), "site", "route", "age_s",
                          "leaked" (null, or the reason)}]}],
     "silent": [numbers of workers of which nothing is in "held", for they did not answer]}

What is not known of a pool is null. Those with most seconds of waiting come first, and of each the
routes that used it most, the lines that had most connections made, and what has been held longest
(ten at most).
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, get_args

from loopscope.core.leak import Reason
from loopscope.core.merge import Family
from loopscope.core.stacks import UserCode
from loopscope.sources.pools import metrics
from loopscope.sources.pools.use import Use

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
_MOST_HELD = 10

_Pool = dict[str, Any]
_Use = dict[str, Any]


class _Pools(dict[tuple[str, str], _Pool]):
    """Pools by name and kind, each as if nothing were known of it before it is asked for."""

    def __missing__(self, labels: tuple[str, str]) -> _Pool:
        name, kind = labels
        pool: _Pool = {
            "pool": name,
            "kind": kind,
            **dict.fromkeys(_GAUGES),
            **dict.fromkeys(_OLDEST, 0.0),
            **{key: {"count": 0.0, "seconds": 0.0} for key in _HISTOGRAMS},
            **dict.fromkeys(_COUNTERS, 0.0),
            "leaked": dict.fromkeys(get_args(Reason), 0.0),
            "routes": [],
            "creations": [],
            "held": [],
        }
        self[labels] = pool
        return pool


def pools(all_families: Iterable[Family], of_workers: Iterable[list[_Use]]) -> dict[str, Any]:
    """The document above but for ``silent``, of all figures and what is ``held`` in each worker."""
    families = {family.metric.name: family for family in all_families}
    found = _Pools()
    for key, metric in (_GAUGES | _COUNTERS).items():
        for (name, kind, *_), values in _rows(families.get(metric.name)):
            found[name, kind][key] = values[0]
    for key, metric in _OLDEST.items():  # one a worker
        for (name, kind, *_), values in _rows(families.get(metric.name)):
            found[name, kind][key] = max(found[name, kind][key], values[0])
    for key, metric in _HISTOGRAMS.items():
        for (name, kind, *_), (*buckets, total) in _rows(families.get(metric.name)):
            found[name, kind][key] = {"count": sum(buckets), "seconds": total}
    for (name, kind, reason), values in _rows(families.get(metrics.LEAKED.name)):
        found[name, kind]["leaked"][reason] = values[0]
    _add_routes(found, families)
    _add_creations(found, families)
    _add_held(found, of_workers)
    by_waiting = sorted(found.values(), key=lambda pool: pool["wait"]["seconds"], reverse=True)
    return {"pools": by_waiting}


def held(uses: Iterable[Use], users: UserCode, now: float) -> list[_Use]:
    """What is in use in this worker, as above, with ``pool`` and ``kind``; as much as is shown.

    ``uses`` longest first, ``now`` on their clock.
    """
    described: list[_Use] = []
    shown: Counter[tuple[str, str]] = Counter()
    for use in uses:
        labels = use.meter.labels
        shown[labels] += 1
        if shown[labels] <= _MOST_HELD:
            described.append(
                {
                    "pool": labels[0],
                    "kind": labels[1],
                    "worker": str(os.getpid()),
                    "site": users.describe_place(use.place),
                    "route": use.route_so_far(),
                    "age_s": now - use.since,
                    "leaked": use.leaked,
                }
            )
    return described


def _rows(family: Family | None) -> Iterator[tuple[tuple[str, ...], tuple[float, ...]]]:
    if family is not None:
        for labels, raw in family.rows.items():
            yield labels, tuple(family.values(raw))


def _add_routes(found: _Pools, families: dict[str, Family]) -> None:
    """Waiting and use by route."""
    seconds: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(
        lambda: dict.fromkeys(_BY_ROUTE, 0.0)
    )
    for key, metric in _BY_ROUTE.items():
        for labels, values in _rows(families.get(metric.name)):
            seconds[labels][key] = values[0]
    for (name, kind, route), sums in sorted(seconds.items(), key=lambda each: -each[1]["use_s"]):
        found[name, kind]["routes"].append({"route": route, **sums})


def _add_creations(found: _Pools, families: dict[str, Family]) -> None:
    """Who had new ones made."""
    made = {labels: values[0] for labels, values in _rows(families.get(metrics.CREATIONS.name))}
    for (name, kind, route, site), count in sorted(made.items(), key=lambda each: -each[1]):
        found[name, kind]["creations"].append({"route": route, "site": site, "count": count})


def _add_held(found: _Pools, of_workers: Iterable[list[_Use]]) -> None:
    """What is in use right now."""
    uses = [use for worker in of_workers for use in worker]
    for use in sorted(uses, key=lambda use: use["age_s"], reverse=True):
        described = dict(use)
        held = found[described.pop("pool"), described.pop("kind")]["held"]
        if len(held) < _MOST_HELD:
            held.append(described)
