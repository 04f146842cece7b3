"""A worker to be watched: ``worker.py DIRECTORY LOOP`` does what it reads from its stdin."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import sys
import threading
import time
from typing import Any

import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from tests.harness import call

EXPONENTIAL = r"(a+)+$"
"""Takes twice as long for each letter more."""
A_WHILE, FOR_EVER = "a" * 23 + "b", "a" * 60 + "b"


def backtrack(seconds: float) -> None:
    """Compute in C, without letting anybody else run but in between."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        re.match(EXPONENTIAL, A_WHILE)


def keep(seconds: float) -> None:
    """Keep the interpreter, and compute nothing."""
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


async def compute(request: Request) -> Response:
    backtrack(float(request.path_params["seconds"]))
    return PlainTextResponse("")


async def hang(request: Request) -> Response:
    re.match(EXPONENTIAL, FOR_EVER)
    return PlainTextResponse("")


async def block(request: Request) -> Response:
    time.sleep(float(request.path_params["seconds"]))  # noqa: ASYNC251 - on purpose
    return PlainTextResponse("")


async def steal(request: Request) -> Response:
    seconds = float(request.path_params["seconds"])
    thread = threading.Thread(target=keep, args=(seconds,), name="thief")
    thread.start()
    await asyncio.sleep(seconds + 0.1)
    thread.join()
    return PlainTextResponse("")


async def wait(request: Request) -> Response:
    await asyncio.sleep(float(request.path_params["seconds"]))
    return PlainTextResponse("")


SECONDS = "{seconds:float}"
ROUTES = [Route(f"/{each.__name__}/{SECONDS}", each) for each in (compute, block, steal, wait)]


async def main(directory: str) -> None:
    app: Any = Loopscope(
        Starlette(routes=[*ROUTES, Route("/hang", hang)]),
        directory=directory,
        listen="off",
        sentinel=os.environ.get("SENTINEL", "") != "off",
    )
    loop = asyncio.get_running_loop()
    await call(app, "/wait/0.0")
    print("ready", flush=True)
    while path := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        await call(app, path)
        print("done", flush=True)


if __name__ == "__main__":
    factory = uvloop.new_event_loop if sys.argv[2] == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main(sys.argv[1]))
