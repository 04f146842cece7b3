"""``/api/profile``: what a worker is doing, as a profile of the seconds that follow the question.

It is taken from outside, by py-spy in a child: no code for it runs in the worker, which may well be
stuck, and is not stopped either. ``worker`` is one of the group's processes, never any other; where
it is not given it is the one that answers, or, where somebody answers who is no worker, the one
that uses the most CPU. Nothing but whole seconds, up to 300, is understood by ``seconds``.

``gil=1`` leaves only the thread that holds the GIL, ``idle=1`` adds threads that wait.

A process records one profile at a time: a second question is answered with 429 and the seconds
until the first one is done. Whoever stops waiting for a profile ends it.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Protocol, cast

import psutil
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from loopscope.admin.parameters import choice, whole
from loopscope.core.ptrace import allow_others_to_trace
from loopscope.sentinel.pyspy import (
    FORMATS,
    MOST_SECONDS,
    SUFFIXES,
    Format,
    GoneError,
    NotAllowedError,
    PySpyError,
    record,
)

_TYPES: dict[Format, str] = {
    "flamegraph": "image/svg+xml",
    "speedscope": "application/json",
    "folded": "text/plain; charset=utf-8",
}
_ATTENTION = 0.25
"""Seconds between two looks at whether the one who asked is still there."""
_COMPARED = 0.1
"""Seconds over which workers are compared."""

_ends: dict[int, float] = {}
"""When the profile that a process is recording will be done: monotonic seconds, by process.

By process, because a forked child has no share in what its parent is doing.
"""


class Recorder(Protocol):
    """Records process ``pid`` as long as that ``is_wanted``; may raise ``PySpyError``."""

    def __call__(self, pid: int, /, *, is_wanted: Callable[[], bool]) -> bytes: ...


class UnknownWorkerError(Exception):
    """There is no such worker in this group; the message lists those that there are."""


async def profile(request: Request, workers: Sequence[int]) -> Response:
    """The answer to a ``request``, about one of the processes that are ``workers``.

    Raises ``BadParameterError``.
    """
    parameters = request.query_params
    seconds = whole(parameters, "seconds", default=5, most=int(MOST_SECONDS))
    kind = cast("Format", choice(parameters, "format", FORMATS))
    gil, idle = (choice(parameters, name, ("0", "1")) == "1" for name in ("gil", "idle"))
    until = time.monotonic() + seconds
    try:
        candidates = _candidates(parameters.get("worker"), workers)
    except UnknownWorkerError as error:
        return _refused(404, error)
    if _ends.setdefault(os.getpid(), until) is not until:
        return _busy()
    recorder = partial(record, seconds=seconds, format=kind, gil=gil, idle=idle)
    try:
        pid, body = await _recorded(request, candidates, recorder)
    except GoneError as error:
        return _refused(404, error)
    except PySpyError as error:
        return _refused(503, error)
    # A browser draws an SVG; the rest is for other programs.
    disposition = "inline" if kind == "flamegraph" else "attachment"
    name = f"profile-{pid}.{SUFFIXES[kind]}"
    return Response(
        body,
        media_type=_TYPES[kind],
        headers={"content-disposition": f'{disposition}; filename="{name}"'},
    )


def recorded_of(pid: int, recorder: Recorder, is_wanted: Callable[[], bool]) -> bytes:
    """The profile of process ``pid``, which may be this one.

    Its own children may not look into it where Yama is in force, unless it says that they may:
    said only where it is needed, as it takes the place of whom else it may have named.
    Raises ``PySpyError``.
    """
    try:
        return recorder(pid, is_wanted=is_wanted)
    except NotAllowedError:
        if pid != os.getpid() or not allow_others_to_trace(pid):
            raise
    return recorder(pid, is_wanted=is_wanted)


def busiest(pids: Sequence[int]) -> int:
    """The process that uses the most CPU just now. Takes a moment where there are several."""
    if len(pids) == 1:
        return pids[0]
    before = {pid: _cpu(pid) for pid in pids}
    time.sleep(_COMPARED)
    return max(pids, key=lambda pid: _cpu(pid) - before[pid])


def _candidates(asked: str | None, workers: Sequence[int]) -> Sequence[int]:
    """The workers that a question may be about. Raises ``UnknownWorkerError``."""
    if asked is not None:
        named = [pid for pid in workers if str(pid) == asked]
    else:
        named = [pid for pid in workers if pid == os.getpid()] or list(workers)
    if named:
        return named
    which = f"{asked!r} is no worker of this service" if asked is not None else "no worker is alive"
    there_are = ", ".join(map(str, sorted(workers)))
    raise UnknownWorkerError(f"{which}; there are: {there_are}" if workers else which)


async def _recorded(
    request: Request, candidates: Sequence[int], recorder: Recorder
) -> tuple[int, bytes]:
    """The process chosen and its profile; given up when whoever asked has gone."""
    unwanted = threading.Event()
    done: Future[tuple[int, bytes]] = Future()
    done.set_running_or_notify_cancel()  # whoever waits may leave; the thread still sets it

    def work() -> None:
        try:
            pid = busiest(candidates)
            done.set_result((pid, recorded_of(pid, recorder, lambda: not unwanted.is_set())))
        except Exception as error:
            done.set_exception(error)
        finally:
            _ends.pop(os.getpid(), None)

    # A thread for this alone, and a daemon: neither figures nor the end of a service wait for it.
    thread = threading.Thread(target=work, name="loopscope-profile", daemon=True)
    try:
        thread.start()
    except BaseException:
        _ends.pop(os.getpid(), None)
        raise
    result = asyncio.wrap_future(done)
    try:
        while not (await asyncio.wait((result,), timeout=_ATTENTION))[0]:
            if await request.is_disconnected():
                unwanted.set()
        return result.result()
    finally:
        unwanted.set()


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far; none of one that is gone."""
    with suppress(psutil.Error):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _busy() -> Response:
    left = max(1, math.ceil(_ends.get(os.getpid(), 0.0) - time.monotonic()))
    sentence = f"A profile is being recorded already; ask again in {left} s."
    response = _refused(429, sentence)
    response.headers["retry-after"] = str(left)
    return response


def _refused(status: int, why: object) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=status)
