"""What being watched costs a worker that has nothing to do, and what watching costs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import psutil

from _frozen_server import Server
from _table import table

_SETTLING = 5.0
"""Seconds after the start in which imports and first looks are over."""
_MIB = 1 << 20


@dataclass(frozen=True)
class Cost:
    """Of one idle service. CPU in percent of one CPU, memory in MiB."""

    loop: str
    workers: int
    is_watched: bool
    worker_cpu: float
    """Of one worker, on average."""
    sentinel_cpu: float | None
    sentinel_resident: float | None
    sentinel_unique: float | None
    looks: float
    """Looks taken meanwhile: a loop that rests should not be worth any."""


def costs(loops: Iterable[str], seconds: float) -> list[Cost]:
    """One after the other."""
    cases = ((0, False), (0, True), (4, True))
    return [
        _cost(loop, workers, seconds, sentinel=sentinel)
        for loop in loops
        for workers, sentinel in cases
    ]


def _cost(loop: str, workers: int, seconds: float, *, sentinel: bool) -> Cost:
    with Server.running(loop, workers, sentinel=sentinel) as server:
        time.sleep(_SETTLING)
        watching = psutil.Process(server.sentinel()) if sentinel else None
        serving = [psutil.Process(pid) for pid in server.worker_pids()]
        looks = server.figure("loopscope_sentinel_looks_total")
        before, watched_before = _spent(serving), _spent([watching] if watching else [])
        time.sleep(seconds)
        spent, watched = _spent(serving) - before, _spent([watching] if watching else [])
        memory = watching.memory_full_info() if watching else None
        return Cost(
            loop,
            server.workers,
            sentinel,
            100.0 * spent / seconds / len(serving),
            100.0 * (watched - watched_before) / seconds if watching else None,
            memory.rss / _MIB if memory else None,
            memory.uss / _MIB if memory else None,
            server.figure("loopscope_sentinel_looks_total") - looks,
        )


def _spent(processes: Sequence[psutil.Process]) -> float:
    """CPU seconds, those of children that have ended included: py-spy is one."""
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def report(found: Sequence[Cost]) -> None:
    """Print what was measured."""
    table(
        "Idle: CPU in % of one, memory in MiB",
        [
            "loop",
            "workers",
            "watched",
            "a worker's CPU",
            "sentinel's",
            "resident",
            "unique",
            "looks",
        ],
        [
            (
                each.loop,
                str(each.workers),
                "yes" if each.is_watched else "no",
                f"{each.worker_cpu:.2f}",
                *map(_shown, (each.sentinel_cpu, each.sentinel_resident, each.sentinel_unique)),
                f"{each.looks:.0f}",
            )
            for each in found
        ],
    )


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
