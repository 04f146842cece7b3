"""``loopscope selftest``: hold a scratch event loop in known ways and say what was seen of it.

What can be seen depends on the interpreter, the kind of loop, the kernel and the container. So it
is tried out, here and now, with the very watchdog that a service runs.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import importlib.util
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.page import Page
from loopscope.core.stacks import UserCode
from loopscope.core.stall import Stall
from loopscope.sources.gc import GcSource
from loopscope.sources.loop import LoopMonitor
from loopscope.sources.stalls import StallBook
from loopscope.sources.suspicion import Running, Waiting
from loopscope.sources.watchdog import Watchdog

NAME = "selftest"
HELP = "Hold a scratch event loop in known ways and print what loopscope sees of it here."

_SECONDS = 0.15
_THRESHOLD = 0.05


@dataclass(frozen=True)
class Injection:
    """One way to hold a loop: what to call, and the causes that would be right."""

    name: str
    hold: Callable[[], object]
    causes: tuple[str, ...]
    line: bool = True
    """Whether the holding function should be named."""


class Scratch:
    """An event loop nobody sends requests to (``sources.watchdog.Watched``)."""

    def __init__(self, monitor: LoopMonitor) -> None:
        self.monitor = monitor

    def running(self) -> Running | None:
        loop = self.monitor.loop
        task = None if loop is None else asyncio.current_task(loop)
        return None if task is None else Running(id(task), 0.0, task=task.get_name())

    def waiting(self) -> Sequence[Waiting]:
        return ()

    def label_of(self, waiting: Waiting) -> tuple[str, str]:
        return "", ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``--loop``."""
    parser.add_argument(
        "--loop", choices=("asyncio", "uvloop", "all"), default="all", help="which kind of loop"
    )


def run(arguments: argparse.Namespace) -> int:
    """Exit code 1 if a hold went unseen or a wrong line was named."""
    kinds = ("asyncio", "uvloop") if arguments.loop == "all" else (arguments.loop,)
    failed = False
    for kind in kinds:
        if kind == "uvloop" and importlib.util.find_spec("uvloop") is None:
            print("uvloop is not installed here.")
            continue
        print(f"{kind}: each hold is {_SECONDS * 1000:.0f} ms or more; threshold 50 ms")
        for injection, seconds, stall in _observe(kind):
            sentence, is_right = _judged(injection, seconds, stall)
            failed |= not is_right
            print(f"  {'seen' if is_right else 'FAIL'}  {injection.name:34s} {sentence}")
    return int(failed)


def _judged(injection: Injection, seconds: float, stall: Stall | None) -> tuple[str, bool]:
    if stall is None:
        return "not seen", False
    wrong_line = bool(stall.location) and injection.hold.__name__ not in stall.location
    sentence = (
        f"{seconds * 1000:4.0f} ms, seen as {stall.duration_s * 1000:4.0f} ms, {stall.cause}"
        f"{', ' + stall.location if stall.location else ''}"
    )
    if stall.cause not in injection.causes:
        sentence += f" (expected {' or '.join(injection.causes)})"
    if injection.line and not stall.location:
        sentence += " (no line named)"
    return sentence, not wrong_line


def _observe(kind: str) -> list[tuple[Injection, float, Stall | None]]:
    if kind == "uvloop":
        import uvloop

        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    else:
        runner = asyncio.Runner()
    with runner:
        return runner.run(_inject_all())


async def _inject_all() -> list[tuple[Injection, float, Stall | None]]:
    clock = Clock()
    page = Page.anonymous(clock, capacity=1 << 20)
    monitor = LoopMonitor(page, clock.now, _THRESHOLD)
    collector = GcSource(page, clock.now)
    seen: list[Stall] = []
    scratch = Scratch(monitor)
    watchdog = Watchdog(
        lambda: [scratch],
        clock,
        _THRESHOLD,
        book=StallBook(page),
        user_code=UserCode((__file__.rpartition("/")[0],)),
        pauses=lambda: list(collector.pauses),
        on_stall=seen.append,
        faults=Faults(),
    )
    monitor.attach()
    collector.start()
    watchdog.start()
    results: list[tuple[Injection, float, Stall | None]] = []
    try:
        await asyncio.sleep(4 * _THRESHOLD)
        for injection in injections():
            seen.clear()
            began = clock.now()
            injection.hold()
            seconds = clock.now() - began
            await asyncio.sleep(4 * _THRESHOLD)
            longest = max(seen, key=lambda stall: stall.duration_s, default=None)
            results.append((injection, seconds, longest))
    finally:
        watchdog.stop()
        collector.stop()
        monitor.detach()
        page.close()
    return results


def injections() -> list[Injection]:
    """The ways to hold a loop that every Python has."""
    return [
        Injection("blocking call", _blocking_call, ("blocking_call",)),
        Injection("Python code", _python_code, ("cpu",)),
        Injection("C code that keeps the GIL", _backtrack, ("cpu",)),
        Injection("C code asleep with the GIL", _asleep_with_gil, ("blocking_call",)),
        Injection("lock held by a thread", _lock_of_another, ("lock",)),
        Injection("garbage collection", _collection, ("gc",), line=False),
        Injection("thread that keeps the GIL", _thief, ("gil_contention",), line=False),
    ]


def _blocking_call() -> None:
    time.sleep(_SECONDS)


def _python_code() -> None:
    until = time.perf_counter() + _SECONDS
    while time.perf_counter() < until:
        pass


def _asleep_with_gil() -> None:
    ctypes.PyDLL(None).usleep(int(_SECONDS * 1e6))


def _lock_of_another() -> None:
    lock = threading.Lock()
    lock.acquire()
    timer = threading.Timer(_SECONDS, lock.release)
    timer.start()
    lock.acquire()
    timer.join()


def _collection() -> None:
    kept = [[number] for number in range(400_000)]
    gc.collect()
    del kept


def _thief() -> None:
    thread = threading.Thread(target=_backtrack, name="selftest-thief")
    thread.start()
    while thread.is_alive():
        time.sleep(0)


def _backtrack() -> None:
    """A regular expression that tries for a while, however fast the machine is."""
    length = 16
    began = time.perf_counter()
    while time.perf_counter() - began < _SECONDS:
        length += 1
        re.match("(a+)+$", "a" * length + "b")
