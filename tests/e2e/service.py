"""A small real service: run as ``service.py PORT LOOP``, or by a server that imports ``app``.

With ``BARE`` in the environment it is not measured.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from loopscope import Loopscope


async def ready(request: Request) -> Response:
    """Answers at once."""
    return PlainTextResponse("ready")


async def item(request: Request) -> Response:
    """Answers at once, on a route with a parameter."""
    return PlainTextResponse(request.path_params["item"])


async def fail(request: Request) -> Response:
    """Does not answer."""
    raise LookupError("on purpose")


async def slow(request: Request) -> Response:
    """Answers late and never asks whether anybody still listens."""
    await asyncio.sleep(0.5)
    return PlainTextResponse("late")


def backtrack() -> None:
    """Compute for ever in C, with the interpreter to itself."""
    re.match(r"(a+)+$", "a" * 60 + "b")


async def hang(request: Request) -> Response:
    """Never comes back, and lets nobody else run."""
    backtrack()
    return PlainTextResponse("done")


async def block(request: Request) -> Response:
    """Holds the loop, but not the interpreter, for that many seconds."""
    time.sleep(float(request.path_params["seconds"]))  # noqa: ASYNC251 - on purpose
    return PlainTextResponse("done")


async def thief(request: Request) -> Response:
    """Starts a thread that holds the interpreter for that many seconds."""
    seconds = float(request.path_params["seconds"])
    threading.Thread(target=steal, args=(seconds,), name="thief").start()
    return PlainTextResponse("started")


def steal(seconds: float) -> None:
    """Hold the interpreter, once the request that asked for it is over."""
    time.sleep(0.05)
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))


async def pid(request: Request) -> Response:
    """Says who answers."""
    return PlainTextResponse(str(os.getpid()))


async def stream(request: Request) -> Response:
    """Goes on for a while."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100
            await asyncio.sleep(0.05)

    return StreamingResponse(body(), media_type="text/plain")


class Deaf:
    """Streams like ``stream``, as a plain ASGI application that never asks about its client."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await send({"type": "http.response.body", "body": b"x" * 100, "more_body": True})
            await asyncio.sleep(0.05)
        await send({"type": "http.response.body", "body": b""})


async def echo(websocket: WebSocket) -> None:
    """Says back what it is told, until the client closes."""
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app = Starlette(
    routes=[
        Route("/ready", ready),
        Route("/items/{item}", item),
        Route("/fail", fail),
        Route("/slow", slow),
        Route("/hang", hang),
        Route("/block/{seconds:float}", block),
        Route("/thief/{seconds:float}", thief),
        Route("/pid", pid),
        Route("/stream", stream),
        Route("/deaf", Deaf()),
        Route("/items/{item}/long", Deaf()),
        WebSocketRoute("/echo", echo),
    ]
)
if "BARE" not in os.environ:
    app.add_middleware(Loopscope)

if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop=sys.argv[2],
        http="h11",  # lets invented methods through
        log_level="warning",
    )
