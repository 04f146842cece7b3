"""CPU throttling by the container's quota: a service that is not allowed to run looks stalled.

cgroup v2 first (``cpu.stat`` of this process' group), then v1. Inside a container the group's path
is often not visible, and the mount's root is the container's own group. Where there is nothing to
read, nothing is published.
"""

from __future__ import annotations

from pathlib import Path

from loopscope.core.histogram import Number
from loopscope.core.metric import Metric
from loopscope.core.page import Page

PERIODS = Metric(
    "loopscope_cgroup_cpu_periods_total", "counter", "Enforcement periods of the CPU quota."
)
THROTTLED_PERIODS = Metric(
    "loopscope_cgroup_cpu_throttled_periods_total",
    "counter",
    "Enforcement periods in which the quota was used up.",
)
THROTTLED = Metric(
    "loopscope_cgroup_cpu_throttled_seconds_total",
    "counter",
    "Time the quota kept the group off the CPUs.",
    unit="seconds",
)

METRICS = (PERIODS, THROTTLED_PERIODS, THROTTLED)


class CgroupSource:
    """Reads ``cpu.stat``; ``root`` is where ``proc`` and ``sys`` are."""

    def __init__(self, page: Page, root: Path = Path("/")) -> None:
        self._file = find_statistics(root)
        self._numbers: list[Number] = []
        if self._file is not None and parse_statistics(self._file.read_text()) is not None:
            self._numbers = [Number(page.slots, page.allocate(metric)) for metric in METRICS]

    def refresh(self) -> None:
        if self._file is None or not self._numbers:
            return
        statistics = parse_statistics(self._file.read_text())
        if statistics is not None:
            for number, value in zip(self._numbers, statistics, strict=True):
                number.set(value)


def find_statistics(root: Path) -> Path | None:
    """The ``cpu.stat`` that speaks of this process, or None."""
    try:
        groups = (root / "proc/self/cgroup").read_text()
    except OSError:
        return None
    candidates = [root / "sys/fs/cgroup" / place / "cpu.stat" for place in _places(groups)]
    return next((file for file in candidates if file.is_file()), None)


def _places(groups: str) -> list[str]:
    """Folders below ``/sys/fs/cgroup`` to look in, best first, from ``/proc/self/cgroup``."""
    places: list[str] = []
    for line in groups.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            places += [path.strip("/"), ""]
        elif "cpu" in controllers.split(","):
            places += [f"{mount}/{path.strip('/')}" for mount in (controllers, "cpu")]
            places += [controllers, "cpu"]
    return places


def parse_statistics(text: str) -> tuple[float, float, float] | None:
    """Periods, throttled periods, throttled seconds; None where no quota is accounted for."""
    values = dict(line.split()[:2] for line in text.splitlines() if len(line.split()) > 1)
    try:
        seconds = (
            int(values["throttled_usec"]) / 1e6
            if "throttled_usec" in values
            else int(values["throttled_time"]) / 1e9
        )
        return float(values["nr_periods"]), float(values["nr_throttled"]), seconds
    except (KeyError, ValueError):
        return None
