"""Every metric loopscope publishes, gathered from the sources that declare them.

Dashboards, documentation and tests read this; a name, label or unit that is not here does not
exist. A new source is one more name in ``SOURCES``.
"""

from __future__ import annotations

from loopscope.core import group
from loopscope.core.metric import Metric
from loopscope.sources import (
    awaits,
    cgroup,
    exits,
    factory,
    gc,
    hangs,
    in_flight,
    itself,
    loop,
    outside,
    process,
    requests,
    stalls,
    tasks,
    websockets,
)
from loopscope.sources.pools import metrics as pools
from loopscope.sources.pools import semconv as db_client

SOURCES = (
    requests,
    in_flight,
    websockets,
    loop,
    stalls,
    tasks,
    factory,
    awaits,
    pools,
    db_client,
    process,
    cgroup,
    gc,
    group,
    hangs,
    itself,
    outside,
    exits,
)

CATALOGUE: tuple[Metric, ...] = tuple(metric for source in SOURCES for metric in source.METRICS)

BY_NAME = {metric.name: metric for metric in CATALOGUE}
