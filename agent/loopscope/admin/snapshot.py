"""``/api/snapshot``: every figure as JSON.

A contract, versioned and only ever extended::

    {"version": 1, "loopscope": "0.1.0", "pid": 1, "taken_at": <unix s>, "metrics": [
      {"name": "...", "kind": "counter" | "gauge" | "histogram", "unit": "seconds", "help": "...",
       "bounds": [...],                                        # histograms only
       "series": [{"labels": {...}, "value": 1.0}              # counters and gauges
                  {"labels": {...}, "count": 3, "sum": 0.5, "buckets": [1, 2, 0]}]}]}

``buckets`` are not cumulative; the last one is everything above the last bound.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from loopscope._version import __version__
from loopscope.core.clock import Clock
from loopscope.core.merge import Family

VERSION = 1


def snapshot(families: Iterable[Family], clock: Clock) -> dict[str, Any]:
    """The document above, of ``families`` as of now."""
    return {
        "version": VERSION,
        "loopscope": __version__,
        "pid": os.getpid(),
        "taken_at": clock.wall(clock.now()),
        "metrics": [_family(family) for family in families],
    }


def _family(family: Family) -> dict[str, Any]:
    metric = family.metric
    described: dict[str, Any] = {
        "name": metric.name,
        "kind": metric.kind,
        "unit": metric.unit,
        "help": metric.help,
    }
    if metric.bounds:
        described["bounds"] = list(metric.bounds)
    described["series"] = [
        {"labels": dict(zip(family.label_names, labels, strict=True)), **_numbers(family, raw)}
        for labels, raw in family.rows.items()
    ]
    return described


def _numbers(family: Family, raw: tuple[bytes, ...]) -> dict[str, Any]:
    values = family.values(raw)
    if not family.metric.bounds:
        return {"value": values[0]}
    *buckets, total = values
    return {"count": sum(buckets), "sum": total, "buckets": buckets}
