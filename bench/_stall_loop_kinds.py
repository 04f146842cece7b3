"""Stalls that need the loop to be played: no single call blocks, or nobody's coroutine makes it.

Each coroutine brings one stall about, stamps `truth` while it is happening, and returns when it is
over. They have one placement, `loop`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from _stall_kinds import BACKTRACK, Block, backtrack, blocking_lines, sleep
from _stall_records import Truth

THIEF = "thumbnails"
"""The name of the thread that takes the GIL."""
_opened = threading.local()
_SMALL_SECONDS = 0.002
_THIEF_WAITS_SECONDS = 0.02


@dataclass(frozen=True)
class LoopKind:
    """One way of making the loop late that is not one call in somebody's coroutine."""

    key: str
    causes: tuple[str, ...]
    play: Callable[[float, Truth], Awaitable[None]]
    functions: tuple[Callable[..., object], ...]
    """Where the lines that block are."""
    culprits: tuple[str, ...] = ()
    package: str = ""
    names: str = "line"
    """What a tool should name, see `Truth.names`."""

    def prepare(self, seconds: float) -> Block:
        """Make what takes long to make ready, as `Kind.prepare` does."""
        return _theft(seconds) if self.key == "gil-thief" else lambda: None

    @property
    def lines(self) -> list[str]:
        """`file.py:line` of everything that blocks."""
        return [line for function in self.functions for line in blocking_lines(function)]


def stamped(truth: Truth, block: Block) -> None:
    """Run `block` and note from when to when."""
    _stamp(truth, "start")
    try:
        block()
    finally:
        _stamp(truth, "end")


def queued_s() -> float:
    """Seconds that this thread was ready and not given a CPU; 0.0 where Linux does not tell.

    The file is opened once a thread, and kept open: tools that look for blocking calls see `open`.
    """
    try:
        if not hasattr(_opened, "file"):
            file = Path("/proc/thread-self/schedstat").open("rb", buffering=0)  # noqa: SIM115  # kept
            _opened.file = file
        return int(os.pread(_opened.file.fileno(), 100, 0).split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def small_step() -> None:
    """Truth: harmless alone. Only the crowd of them is a stall."""
    end = time.perf_counter() + _SMALL_SECONDS  # blocks
    while time.perf_counter() < end:  # blocks
        pass  # blocks


async def saturate(seconds: float, truth: Truth) -> None:
    """Many small callbacks, all ready at once."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.call_soon(partial(_stamp, truth, "start"))
    for _ in range(round(seconds / _SMALL_SECONDS)):
        loop.call_soon(small_step)
    loop.call_soon(partial(_stamp, truth, "end"))
    loop.call_soon(done.set)
    await done.wait()


async def call_c_function(seconds: float, truth: Truth) -> None:
    """Truth: the loop calls C itself. There is no line of anybody's to name, only the function."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    loop.call_soon(partial(_stamp, truth, "start"))
    loop.call_soon(time.sleep, seconds)
    loop.call_soon(partial(_stamp, truth, "end"))
    loop.call_soon(done.set)
    await done.wait()


async def read(seconds: float, truth: Truth) -> None:
    """Truth: a reader callback blocks; it belongs to no task and was not scheduled by call_soon."""
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    ours, theirs = socket.socketpair()

    def on_readable() -> None:
        ours.recv(1)
        stamped(truth, partial(sleep, seconds))
        done.set()

    loop.add_reader(ours, on_readable)
    theirs.send(b".")
    await done.wait()
    loop.remove_reader(ours)
    ours.close()
    theirs.close()


class _SlowProtocol(asyncio.Protocol):
    def __init__(self, seconds: float, truth: Truth) -> None:
        self._seconds = seconds
        self._truth = truth
        self.done = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        stamped(self._truth, partial(sleep, self._seconds))
        self.done.set()


async def receive_data(seconds: float, truth: Truth) -> None:
    """Truth: a protocol's `data_received` blocks; only the transport calls it."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    transport, protocol = await loop.create_connection(
        lambda: _SlowProtocol(seconds, truth), sock=ours
    )
    theirs.send(b".")
    await protocol.done.wait()
    transport.close()
    theirs.close()


async def steal_gil(seconds: float, truth: Truth) -> None:
    """Truth: a worker thread holds the GIL; whatever the loop's thread is at is innocent."""
    block = _theft(seconds)

    def make_thumbnail() -> None:
        queued_s()
        time.sleep(_THIEF_WAITS_SECONDS)  # else the step that starts the thread is what stalls
        stamped(truth, block)

    thread = threading.Thread(target=make_thumbnail, name=THIEF)
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.005)
    thread.join()


@cache
def _theft(seconds: float) -> Block:
    return BACKTRACK(seconds)


def _stamp(truth: Truth, which: str) -> None:
    queued = queued_s()
    truth.queued_s = queued if which == "start" else queued - truth.queued_s
    setattr(truth, which, time.perf_counter())


LOOP_KINDS = (
    LoopKind("many-small", ("saturation",), saturate, (small_step,), names="cause"),
    LoopKind("c-callback", ("blocking_call",), call_c_function, (), ("sleep",), names="culprit"),
    LoopKind("reader", ("blocking_call",), read, (sleep,)),
    LoopKind("protocol", ("blocking_call",), receive_data, (sleep,)),
    LoopKind("gil-thief", ("gil_contention",), steal_gil, (backtrack,), (THIEF,), names="culprit"),
)
