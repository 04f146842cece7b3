"""What a metric is: the words a source declares and every reader understands.

A source writes down its metrics once, as constants at the top of its file; ``loopscope.catalogue``
gathers them. Pages carry the declaration along with the numbers, so that a reader in another
process (or of another version) can make sense of a page without sharing code with its writer.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

Kind = Literal["counter", "gauge", "histogram"]
"""How the slots of a series are read: see ``Metric.slot_count``."""

UNIT_SUFFIXES = ("seconds", "bytes", "ratio")
"""Base units that a metric's name must end in when its unit is one of them."""

DURATION_BOUNDS = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Upper bounds in seconds advised for ``http.server.request.duration`` by OpenTelemetry."""

SIZE_BOUNDS = (
    256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0,
)  # fmt: skip
"""Upper bounds in bytes: powers of four from 256 B to 64 MiB."""

STEP_BOUNDS = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
)  # fmt: skip
"""Upper bounds in seconds for work that should be short: a hold of the loop, a pause, a scrape."""

LONG_BOUNDS = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)
"""Upper bounds in seconds for what may last: streams, WebSockets."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric family.

    ``name`` is the published Prometheus name, ``_total`` included for counters. ``bounds`` are a
    histogram's finite upper bounds, ascending; ``per_worker`` marks gauges whose sum over workers
    would mean nothing, so that readers of several pages add a ``worker`` label instead. ``fullest``
    are values of a gauge's last label under which workers are not added up either: the largest
    counts, be it because all of them share one thing or because each has a limit of its own.
    ``is_shared`` marks counters that all workers read at the same place: again the largest counts.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    bounds: tuple[float, ...] = ()
    per_worker: bool = False
    fullest: tuple[str, ...] = ()
    is_shared: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.name}: {self.kind} is no kind of metric")
        if (self.kind == "histogram") != bool(self.bounds):
            raise ValueError(f"{self.name}: a histogram has bounds, nothing else does")
        if not all(map(isfinite, self.bounds)):
            raise ValueError(f"{self.name}: bounds are finite, +Inf goes without saying")
        if list(self.bounds) != sorted(set(self.bounds)):
            raise ValueError(f"{self.name}: bounds must ascend without repeating: {self.bounds}")
        if self.fullest and (self.kind != "gauge" or not self.labels):
            raise ValueError(f"{self.name}: only gauges with labels have a fullest")
        if self.is_shared and self.kind != "counter":
            raise ValueError(f"{self.name}: only counters are shared")
        if (self.kind == "counter") != self.name.endswith("_total"):
            raise ValueError(f"{self.name}: counters, and nothing else, end in _total")

    def __hash__(self) -> int:
        return hash(self.name)  # looked up with every event: not all fields, every time

    @property
    def slot_count(self) -> int:
        """How many float64 slots one series takes.

        A counter or gauge takes one. A histogram takes one per bucket (``+Inf`` last, each holding
        only its own observations, not those below it) and one for the sum; its count is the sum of
        the buckets, so a reader can never see the two disagree.
        """
        return len(self.bounds) + 2 if self.bounds else 1

    @property
    def family(self) -> str:
        """The name without ``_total``: what OpenMetrics calls the metric family."""
        return self.name.removesuffix("_total")
