"""A small real service: run as ``service.py PORT LOOP``."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from loopscope import Loopscope


async def ready(request: Request) -> Response:
    """Answers at once."""
    return PlainTextResponse("ready")


async def slow(request: Request) -> Response:
    """Answers late and never asks whether anybody still listens."""
    await asyncio.sleep(0.5)
    return PlainTextResponse("late")


async def stream(request: Request) -> Response:
    """Goes on for a while."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b"x" * 100
            await asyncio.sleep(0.05)

    return StreamingResponse(body(), media_type="text/plain")


app = Starlette(routes=[Route("/ready", ready), Route("/slow", slow), Route("/stream", stream)])
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
