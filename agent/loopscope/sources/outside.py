"""The workers as the operating system sees them, read from a process that is none of them.

What a worker says of itself in its page stands still while it hangs, and says nothing of how much
of its memory is its own. Seen from outside, the same figures go on, at no cost to the worker but
one: counting its unique memory makes the kernel walk its page tables, in which time it may have to
wait for memory it touches anew. So that is done rarely.

A figure that cannot be had (another platform, another user's process, a worker that has ended
meanwhile) has no row: absent is not zero.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil

from loopscope.core.merge import Family
from loopscope.core.metric import Metric
from loopscope.sources.cgroup import find_statistics, parse_statistics
from loopscope.sources.evidence import parse_schedstat
from loopscope.sources.process import open_fds_at_once, unsigned_limit

_WORKER = ("worker",)

CPU = Metric(
    "loopscope_worker_cpu_seconds_total",
    "counter",
    "CPU time a worker has spent, in its own code (user) or the kernel's on its behalf (system).",
    ("cpu_mode", "worker"),
    unit="seconds",
)
RUN_QUEUE = Metric(
    "loopscope_worker_run_queue_seconds_total",
    "counter",
    "Time a worker's main thread, which commonly runs its event loop, was ready to run and waited "
    "for a CPU.",
    _WORKER,
    unit="seconds",
)
SWITCHES = Metric(
    "loopscope_worker_context_switches_total",
    "counter",
    "Times a worker gave up a CPU (voluntary) or was taken off it (involuntary).",
    ("process_context_switch_type", "worker"),
)
RESIDENT = Metric(
    "loopscope_worker_resident_memory_bytes",
    "gauge",
    "Resident memory of a worker, what it shares with others included.",
    _WORKER,
    unit="bytes",
)
UNIQUE = Metric(
    "loopscope_worker_unique_memory_bytes",
    "gauge",
    "Memory that only this worker has, which would be free if it ended; up to 15 s old.",
    _WORKER,
    unit="bytes",
)
OPEN_FDS = Metric("loopscope_worker_open_fds", "gauge", "Open file descriptors.", _WORKER)
MAX_FDS = Metric(
    "loopscope_worker_max_fds",
    "gauge",
    "How many file descriptors a worker may have open: the soft limit.",
    _WORKER,
)
THREADS = Metric("loopscope_worker_threads", "gauge", "Threads of a worker.", _WORKER)
START_TIME = Metric(
    "loopscope_worker_start_time_seconds",
    "gauge",
    "Start of a worker, in seconds since 1970.",
    _WORKER,
    unit="seconds",
)
PERIODS = Metric(
    "loopscope_worker_cgroup_cpu_periods_total",
    "counter",
    "Enforcement periods of the CPU quota of a worker's control group, which it may share.",
    _WORKER,
)
THROTTLED_PERIODS = Metric(
    "loopscope_worker_cgroup_cpu_throttled_periods_total",
    "counter",
    "Enforcement periods in which that quota was used up.",
    _WORKER,
)
THROTTLED = Metric(
    "loopscope_worker_cgroup_cpu_throttled_seconds_total",
    "counter",
    "Time the quota kept a worker's control group, which it may share, off the CPUs.",
    _WORKER,
    unit="seconds",
)

METRICS = (
    CPU,
    RUN_QUEUE,
    SWITCHES,
    RESIDENT,
    UNIQUE,
    OPEN_FDS,
    MAX_FDS,
    THREADS,
    START_TIME,
    PERIODS,
    THROTTLED_PERIODS,
    THROTTLED,
)

_RARELY = 15.0
"""Seconds between two readings of what costs the worker something."""
_UNREADABLE = (psutil.Error, AttributeError, NotImplementedError, OSError)
"""What reading raises where a figure is not to be had: psutil leaves out what platforms lack."""

Rows = Iterator[tuple[Metric, tuple[str, ...], float]]
"""A metric, its labels but for the worker's, and a value."""


class WorkersView:
    """Watches workers by their process ids. ``now`` tells seconds. One thread."""

    def __init__(self, now: Callable[[], float], root: Path = Path("/")) -> None:
        self._now = now
        self._root = root
        self._workers: dict[int, _Worker] = {}

    def families(self, pids: Iterable[int]) -> list[Family]:
        """What can be read of these workers now. Raises nothing."""
        self._workers = {pid: worker for pid in pids if (worker := self._worker(pid)) is not None}
        families = {metric.name: Family(metric, metric.labels) for metric in METRICS}
        for pid, worker in self._workers.items():
            for metric, labels, value in worker.rows(self._now()):
                families[metric.name].put((*labels, str(pid)), [value])
        return [family for family in families.values() if family.rows]

    def _worker(self, pid: int) -> _Worker | None:
        """The worker of this number, one that has taken over the number of another included."""
        known = self._workers.get(pid)
        try:
            if known is not None and known.is_running():
                return known
            return _Worker(psutil.Process(pid), find_statistics(self._root, str(pid)), self._root)
        except (psutil.Error, OSError):
            return None


class _Worker:
    """One process, which is the same for as long as ``is_running``."""

    def __init__(self, process: psutil.Process, quota: Path | None, root: Path) -> None:
        self.is_running = process.is_running
        self._process = process
        self._quota = quota
        self._schedstat = root / f"proc/{process.pid}/schedstat"
        self._unique: float | None = None
        self._unique_since: float | None = None

    def rows(self, moment: float) -> Rows:
        """All that can be read at ``moment``. Raises nothing."""
        process = self._process
        figures: tuple[Callable[[], Rows], ...] = (
            self._cpu,
            self._switches,
            self._run_queue,
            self._throttling,
            lambda: self._one(RESIDENT, process.memory_info().rss),
            lambda: self._one(UNIQUE, self._unique_memory(moment)),
            lambda: self._one(OPEN_FDS, open_fds_at_once(str(process.pid)) or process.num_fds()),
            lambda: self._one(MAX_FDS, unsigned_limit(process.rlimit(psutil.RLIMIT_NOFILE)[0])),
            lambda: self._one(THREADS, process.num_threads()),
            lambda: self._one(START_TIME, process.create_time()),
        )
        with process.oneshot():
            for read in figures:
                try:
                    yield from list(read())
                except _UNREADABLE:
                    continue

    def _one(self, metric: Metric, value: float | None) -> Rows:
        if value is not None:
            yield metric, (), value

    def _cpu(self) -> Rows:
        times = self._process.cpu_times()
        yield CPU, ("user",), times.user
        yield CPU, ("system",), times.system

    def _switches(self) -> Rows:
        switches = self._process.num_ctx_switches()
        yield SWITCHES, ("voluntary",), switches.voluntary
        yield SWITCHES, ("involuntary",), switches.involuntary

    def _run_queue(self) -> Rows:
        figures = parse_schedstat(self._schedstat.read_bytes())
        if figures is not None:
            yield RUN_QUEUE, (), figures[1]

    def _throttling(self) -> Rows:
        statistics = None
        if self._quota is not None:
            statistics = parse_statistics(os.fsdecode(self._quota.read_bytes()))
        if statistics is not None:
            for metric, value in zip(
                (PERIODS, THROTTLED_PERIODS, THROTTLED), statistics, strict=True
            ):
                yield metric, (), value

    def _unique_memory(self, moment: float) -> float | None:
        if self._unique_since is None or moment - self._unique_since >= _RARELY:
            self._unique_since = moment  # also where it fails: not to be tried all the time
            self._unique = None
            if sys.platform == "linux":
                self._unique = float(self._process.memory_full_info().uss)
        return self._unique
