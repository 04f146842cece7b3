"""Spells in which nothing blocks the loop: whatever is reported of them is a false alarm."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

from _stall_tools import THRESHOLD_S

_SLEEPERS = 50
_STEP_SECONDS = 0.001
_STEPS_BETWEEN_PAUSES = 5
_BEAT_SECONDS = 0.005
_STOP_US = """\
import os, signal, sys, time
us = os.getppid()
for _ in range(int(sys.argv[1])):
    time.sleep(0.3)
    os.kill(us, signal.SIGSTOP)
    try:
        time.sleep(0.3)
    finally:
        os.kill(us, signal.SIGCONT)
"""
_HOG = """\
import os, sys, time
us, end = os.getppid(), time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and os.getppid() == us:
    pass
"""


async def idle(seconds: float) -> None:
    """Nothing at all: the loop sits in its selector."""
    await asyncio.sleep(seconds)


async def await_sleep(seconds: float) -> None:
    """Many tasks that wait for a long time."""
    await asyncio.gather(*(asyncio.sleep(seconds) for _ in range(_SLEEPERS)))


async def to_thread(seconds: float) -> None:
    """What would block was given to a thread, as it should be."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        await asyncio.to_thread(time.sleep, 0.2)


async def busy(seconds: float) -> None:
    """Some 80 % of a CPU, in short steps: healthy, if hard-working."""
    end = time.perf_counter() + seconds
    step = 0
    while time.perf_counter() < end:
        until = time.perf_counter() + _STEP_SECONDS
        while time.perf_counter() < until:
            pass
        step += 1
        await asyncio.sleep(0 if step % _STEPS_BETWEEN_PAUSES else _STEP_SECONDS)


async def stopped(seconds: float) -> None:
    """Somebody stops the process (SIGSTOP), as debuggers, laptops and orchestrators do."""
    times = str(max(1, round(seconds)))
    child = await asyncio.to_thread(subprocess.Popen, [sys.executable, "-c", _STOP_US, times])
    await asyncio.to_thread(child.wait)


async def hogs(seconds: float) -> None:
    """Other processes take all CPUs twice over, and the loop has little work of its own."""
    count = 2 * (os.cpu_count() or 1)
    command = [sys.executable, "-c", _HOG, str(seconds)]
    children = [await asyncio.to_thread(subprocess.Popen, command) for _ in range(count)]
    while any(child.poll() is None for child in children):
        until = time.perf_counter() + _STEP_SECONDS
        while time.perf_counter() < until:
            pass
        await asyncio.sleep(_BEAT_SECONDS)


async def delays(found: list[tuple[float, float]]) -> None:
    """Note when a timer of our own came late: then the machine was to blame, not the loop's work.

    Runs until cancelled.
    """
    while True:
        due = time.perf_counter() + _BEAT_SECONDS
        await asyncio.sleep(_BEAT_SECONDS)
        now = time.perf_counter()
        if now - due > THRESHOLD_S / 2:
            found.append((due, now))


CONTROLS: dict[str, Callable[[float], Awaitable[None]]] = {
    "idle": idle,
    "await": await_sleep,
    "to-thread": to_thread,
    "busy": busy,
    "stopped": stopped,
    "hogs": hogs,
}
"""By the name used on the command line."""

HEALTHY = ("idle", "await", "to-thread", "busy")
"""In which false alarms are counted by the hour; accidents are counted one by one."""

ACCIDENTS = ("stopped", "hogs")
"""In which it is right to say that the loop was late, if it is said whose fault that was not."""

EXCUSABLE = ("await", "to-thread", "busy", "hogs")
"""Where a delay that we saw ourselves excuses a report: the others must not be disturbed by us."""
