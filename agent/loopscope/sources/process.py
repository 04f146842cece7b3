"""The process, as the operating system sees it: CPU, memory, descriptors, threads, switches.

Names are those Prometheus users know (``process_*``) and, beyond them, OpenTelemetry's. A figure
that cannot be had here (another platform, a sandbox) gets no series: absent is not zero.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from functools import cached_property

import psutil

from loopscope.core.histogram import Number
from loopscope.core.metric import Metric
from loopscope.core.page import Page

CPU = Metric(
    "process_cpu_seconds_total",
    "counter",
    "User and system CPU time spent.",
    unit="seconds",
)
RESIDENT = Metric(
    "process_resident_memory_bytes",
    "gauge",
    "Resident memory size.",
    unit="bytes",
    per_worker=True,
)
VIRTUAL = Metric(
    "process_virtual_memory_bytes",
    "gauge",
    "Virtual memory size.",
    unit="bytes",
    per_worker=True,
)
OPEN_FDS = Metric("process_open_fds", "gauge", "Open file descriptors.", per_worker=True)
MAX_FDS = Metric(
    "process_max_fds",
    "gauge",
    "How many file descriptors may be open: the soft limit.",
    per_worker=True,
)
START_TIME = Metric(
    "process_start_time_seconds",
    "gauge",
    "Start of the process, in seconds since 1970.",
    unit="seconds",
    per_worker=True,
)
THREADS = Metric("process_threads", "gauge", "Threads of the process.", per_worker=True)
SWITCHES = Metric(
    "process_context_switches_total",
    "counter",
    "Times the process gave up a CPU (voluntary) or was taken off it (involuntary).",
    ("process_context_switch_type",),
)

METRICS = (CPU, RESIDENT, VIRTUAL, OPEN_FDS, MAX_FDS, START_TIME, THREADS, SWITCHES)

Reading = Callable[[], float]


class ProcessSource:
    """Reads this process through psutil at every refresh.

    What can be read here is found out at the first one: a source is made while a request waits.
    """

    def __init__(self, page: Page) -> None:
        self._page = page
        self._numbers: list[tuple[Number, Reading]] = []

    @cached_property
    def _process(self) -> psutil.Process:
        return psutil.Process()

    def refresh(self) -> None:
        """Read everything once.

        One figure that fails does not cost the others: all are tried, then the last failure is
        raised (``psutil.Error``, ``OSError``), and the figure keeps its value.
        """
        failure: Exception | None = None
        with self._process.oneshot():
            self._numbers = self._numbers or self._find()
            for number, read in self._numbers:
                try:
                    number.set(read())
                except (psutil.Error, OSError) as error:
                    failure = error
        if failure is not None:
            raise failure

    def _find(self) -> list[tuple[Number, Reading]]:
        page = self._page
        return [
            (Number(page.slots, page.allocate(metric, labels)), read)
            for metric, labels, read in self._readings()
            if _can(read)
        ]

    def _readings(self) -> list[tuple[Metric, tuple[str, ...], Reading]]:
        process = self._process
        return [
            (CPU, (), lambda: process.cpu_times().user + process.cpu_times().system),
            (RESIDENT, (), lambda: process.memory_info().rss),
            (VIRTUAL, (), lambda: process.memory_info().vms),
            (OPEN_FDS, (), lambda: open_fds_at_once() or process.num_fds()),
            (MAX_FDS, (), max_fds),
            (START_TIME, (), process.create_time),
            (THREADS, (), process.num_threads),
            (SWITCHES, ("voluntary",), lambda: process.num_ctx_switches().voluntary),
            (SWITCHES, ("involuntary",), lambda: process.num_ctx_switches().involuntary),
        ]


def _can(read: Reading) -> bool:
    """Whether this figure is to be had here: psutil leaves out methods a platform cannot serve."""
    try:
        read()
    except (psutil.Error, AttributeError, NotImplementedError, OSError):
        return False
    return True


def open_fds_at_once(process: str = "self") -> int | None:
    """How many file descriptors a process has open, where that takes no listing of them all.

    Linux says so from 6.2 on: it is the size of the directory they are in, 0 before. Raises
    ``OSError`` without a /proc.
    """
    if sys.platform != "linux":
        return None
    return os.stat(f"/proc/{process}/fd").st_size or None  # noqa: PTH116 - a Path would cost as much again


def max_fds() -> float:
    """The soft limit. From ``resource``, as psutil knows limits on Linux only."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return unsigned_limit(soft)


def unsigned_limit(soft: int) -> float:
    """A limit as the unsigned number it is in C.

    No limit at all reads -1; taken like this, it stays larger than any use.
    """
    return float(soft % 2**64)
