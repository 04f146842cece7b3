"""A service that freezes on demand, and knows the truth about each time it did.

What blocks is taken from `_stall_kinds.py`; here it is put on the loop, or into a thread that keeps
the interpreter from a loop with nothing else on its hands. `/truth` tells when that was.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from _stall_kinds import BACKTRACK, COMPUTE, SIZES, Block, hold_gil, sleep
from loopscope import Loopscope

THIEF = "thief"
"""The thread that keeps the interpreter to itself."""
_SOON = 0.15
"""Seconds until a thread begins: the request that asked for it is over, and the loop at rest."""
_USLEEP = ctypes.PyDLL(None).usleep

TRUTHS: dict[str, dict[str, Any]] = {}
"""What has been over since the start, by the name it was asked for by."""


def block_of(what: str, seconds: float) -> Block:
    """What blocks for that long, whoever calls it."""
    if what == "re":
        return BACKTRACK(seconds)
    if what == "python":
        return COMPUTE(seconds)
    if what == "usleep":
        return lambda: hold_gil(_USLEEP, seconds)
    return lambda: sleep(seconds)


def play(name: str, block: Block) -> None:
    """Block, and note from when until when."""
    before = waited()
    start = time.time()
    block()
    end = time.time()
    TRUTHS[name] = {"pid": os.getpid(), "start": start, "end": end, "waited": waited() - before}


def waited() -> float:
    """Seconds that this thread has waited for a CPU so far; none where Linux does not tell."""
    with suppress(OSError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


async def prepare(request: Request) -> Response:
    """Find how much work takes how long, or be told by whoever has asked another worker."""
    SIZES.update(await request.json())
    for what in ("re", "python"):
        for ms in request.query_params["ms"].split(","):
            block_of(what, int(ms) / 1000)
    return JSONResponse(SIZES)


async def on_loop(request: Request) -> Response:
    """Hold up the loop."""
    given = request.path_params
    play(given["name"], block_of(given["what"], given["ms"] / 1000))
    return JSONResponse({})


async def in_thread(request: Request) -> Response:
    """Have a thread hold up the loop in a moment."""
    given = request.path_params
    block = block_of(given["what"], given["ms"] / 1000)

    def steal() -> None:
        time.sleep(_SOON)
        play(given["name"], block)

    threading.Thread(target=steal, name=THIEF).start()
    return JSONResponse({})


async def truth(request: Request) -> Response:
    """What is known of the one of that name."""
    return JSONResponse(TRUTHS.get(request.path_params["name"]))


async def ready(request: Request) -> Response:
    """Answers at once, and says who does."""
    return JSONResponse({"pid": os.getpid(), "loop": type(asyncio.get_running_loop()).__module__})


def never_ending() -> None:
    """Compute for ever in C, with the interpreter to itself."""
    re.match(r"(a+)+$", "a" * 60 + "b")  # blocks


async def hang(request: Request) -> Response:
    """Never comes back."""
    never_ending()
    return JSONResponse({})


app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/prepare", prepare, methods=["POST"]),
        Route("/loop/{what}/{ms:int}/{name}", on_loop),
        Route("/thread/{what}/{ms:int}/{name}", in_thread),
        Route("/truth/{name}", truth),
        Route("/hang", hang),
    ]
)
app.add_middleware(Loopscope)
