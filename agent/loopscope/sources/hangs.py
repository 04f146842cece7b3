"""Loops that do not come round, as they are seen from outside: what is published of that.

Made by the process that looks (``sentinel``), for the worker itself can say nothing meanwhile.
"""

from __future__ import annotations

from loopscope.core.metric import Metric

LOOKS = Metric(
    "loopscope_sentinel_looks_total",
    "counter",
    "Looks into workers that did not come round, by what came of it: seen, late (it was over), "
    "refused by the kernel, failed, or not taken for there had been many (limited).",
    ("outcome",),
)
SENTINEL_MEMORY = Metric(
    "loopscope_sentinel_resident_memory_bytes",
    "gauge",
    "Resident memory of the process that watches the workers and serves their figures.",
    unit="bytes",
)
SENTINEL_CPU = Metric(
    "loopscope_sentinel_cpu_seconds_total",
    "counter",
    "CPU time of the process that watches the workers and serves their figures.",
    unit="seconds",
)

METRICS = (LOOKS, SENTINEL_MEMORY, SENTINEL_CPU)
