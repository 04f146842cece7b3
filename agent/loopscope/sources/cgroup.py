"""CPU throttling by the container's quota: a service that is not allowed to run looks stalled.

The kernel keeps the counts in ``cpu.stat``, in cgroup v2 and v1 alike
(https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/scheduler/sched-bwc.html).
Which one speaks of this process is written in ``/proc/self/cgroup``, as a path that inside a
container is often "/" or not visible: the mount's root is then the container's own group. Where
there is nothing to read, nothing is published.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path, PurePosixPath

from loopscope.core.histogram import Number
from loopscope.core.metric import Metric
from loopscope.core.page import Page

PERIODS = Metric(
    "loopscope_cgroup_cpu_periods_total",
    "counter",
    "Enforcement periods of the CPU quota.",
    is_shared=True,
)
THROTTLED_PERIODS = Metric(
    "loopscope_cgroup_cpu_throttled_periods_total",
    "counter",
    "Enforcement periods in which the quota was used up.",
    is_shared=True,
)
THROTTLED = Metric(
    "loopscope_cgroup_cpu_throttled_seconds_total",
    "counter",
    "Time the quota kept the group off the CPUs.",
    unit="seconds",
    is_shared=True,
)

METRICS = (PERIODS, THROTTLED_PERIODS, THROTTLED)


class CgroupSource:
    """Reads ``cpu.stat``; ``root`` is where ``proc`` and ``sys`` are.

    Where it is, is found out at the first refresh: a source is made while a request waits.
    """

    def __init__(self, page: Page, root: Path = Path("/")) -> None:
        self._page = page
        self._root = root

    @cached_property
    def _file(self) -> Path | None:
        return find_statistics(self._root)

    @cached_property
    def _numbers(self) -> list[Number]:
        return [Number(self._page.slots, self._page.allocate(metric)) for metric in METRICS]

    def refresh(self) -> None:
        """Copy the counts. Raises ``OSError`` if the group is gone; the last counts then stand."""
        if self._file is None:
            return
        statistics = parse_statistics(self._file.read_text())
        if statistics is not None:
            for number, value in zip(self._numbers, statistics, strict=True):
                number.set(value)


def parse_statistics(text: str) -> tuple[float, float, float] | None:
    """Periods, throttled periods and throttled seconds in the text of a ``cpu.stat``.

    None where no quota is accounted for: at the root of cgroup v2, and in groups without the cpu
    controller. Version 2 counts throttled time in microseconds, version 1 in nanoseconds.
    """
    values = {name: value for name, _, value in (line.partition(" ") for line in text.splitlines())}
    try:
        seconds = (
            int(values["throttled_usec"]) / 1e6
            if "throttled_usec" in values
            else int(values["throttled_time"]) / 1e9
        )
        return float(values["nr_periods"]), float(values["nr_throttled"]), seconds
    except (KeyError, ValueError):
        return None


def find_statistics(root: Path, process: str = "self") -> Path | None:
    """The ``cpu.stat`` that accounts for a process' quota, or None. Raises nothing."""
    mount = root / "sys/fs/cgroup"
    places = candidate_places(_text(root / "proc" / process / "cgroup"))
    files = (mount / place / "cpu.stat" for place in places)
    return next((file for file in files if parse_statistics(_text(file)) is not None), None)


def candidate_places(groups: str) -> Iterator[str]:
    """Folders below the mount to look in, best first, from the text of ``/proc/self/cgroup``.

    Its lines read ``number:controllers:path``; version 2 is the one without controllers.
    """
    for line in groups.splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if ".." in PurePosixPath(path).parts:
            continue  # outside of what this cgroup namespace shows: any guess would be another's
        if not controllers:
            yield from _upwards(path)
        elif "cpu" in controllers.split(","):
            # Parents are no use here: where our path is not visible, a folder of its parent's
            # name belongs to somebody else (containers within containers).
            for hierarchy in (controllers, "cpu"):
                yield hierarchy + path
                yield hierarchy


def _upwards(path: str) -> Iterator[str]:
    """``path`` and its parents, for the cpu controller may be enabled only further up."""
    place = PurePosixPath(path)
    for folder in (place, *place.parents):
        yield str(folder).strip("/")


def _text(file: Path) -> str:
    """What ``file`` says, or nothing where it is missing or not for us. Names may be any bytes."""
    try:
        return os.fsdecode(file.read_bytes())
    except (OSError, ValueError):
        return ""
