"""The service of `exact.py`: an application, Loopscope around it, and a witness around both."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from _exact_kinds import CHUNKS, ECHO, ITEM, LEFT, REFUSED, STREAM
from _exact_witness import Witness
from loopscope import Loopscope


async def ready(request: Request) -> Response:
    """Has no number, and is not compared."""
    return PlainTextResponse("ready")


async def item(request: Request) -> Response:
    """As many bytes as asked for."""
    return PlainTextResponse("i" * int(request.path_params["size"]))


async def echo(request: Request) -> Response:
    """What was sent."""
    return Response(await request.body())


async def stream(request: Request) -> Response:
    """Chunks of as many bytes as asked for, some time apart: so there is always one in flight."""

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield b"s" * int(request.path_params["size"])
            await asyncio.sleep(0.01)

    return StreamingResponse(chunks())


async def refused(request: Request) -> Response:
    """An error of the service's own."""
    return PlainTextResponse("no", REFUSED.status)


async def late(request: Request) -> Response:
    """Answers when whoever asked has left."""
    await asyncio.sleep(0.5)
    return PlainTextResponse("late")


app = Witness(
    Loopscope(
        Starlette(
            routes=[
                Route("/ready", ready),
                Route(ITEM.route, item),
                Route(ECHO.route, echo, methods=["POST"]),
                Route(STREAM.route, stream),
                Route(REFUSED.route, refused),
                Route(LEFT.route, late),
            ]
        )
    ),
    Path(os.environ["BENCH_SEEN"]),
)
