"""The process that scrape.py watches: a light FastAPI service, a heartbeat, and metrics.

Arguments: the way of serving metrics (a key of `WAYS`), how many children the user's own histogram
has, how many routes the app has. The first line out says where the service and its metrics are.
Commands: `{"watch": true}` starts a new list of delays, `{"delays": true}` answers with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import IO
from urllib.parse import urljoin

import uvicorn
import uvloop
from fastapi import FastAPI
from prometheus_client import Histogram, make_asgi_app, start_http_server
from starlette.requests import Request
from starlette.responses import JSONResponse

from _contenders import UNUSABLE
from _net import free_port
from _pipe import Message, answer, claim_stdout, send

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
BEAT_SECONDS = 0.002


class Heartbeat:
    """Runs a timer over and over and keeps how late each one came, in seconds.

    Timers of uvloop and asyncio are exact to about a millisecond, so delays up to that are none.
    """

    def __init__(self) -> None:
        self._delays: list[float] = []

    async def beat(self) -> None:
        """Beat until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + BEAT_SECONDS
            await asyncio.sleep(BEAT_SECONDS)
            self._delays.append(loop.time() - due)

    async def handle(self, command: Message) -> Message:
        """Answer one command, see the module's docstring."""
        if "watch" in command:
            self._delays = []
            return {}
        return {"delays": self._delays}


def loopscope(app: FastAPI) -> str:
    """The agent with its admin listener; it serves the default registry too."""
    from loopscope import Loopscope

    listen = f"127.0.0.1:{free_port()}"
    app.add_middleware(Loopscope, listen=listen)
    return f"http://{listen}/metrics"


def on_the_loop(app: FastAPI) -> str:
    """prometheus_client's own ASGI app, mounted: it renders in the coroutine."""
    app.mount("/metrics", make_asgi_app())
    return "/metrics/"


def in_a_thread(_app: FastAPI) -> str:
    """prometheus_client's own server, in a thread of its own."""
    port = free_port()
    start_http_server(port, "127.0.0.1")
    return f"http://127.0.0.1:{port}/metrics"


WAYS: dict[str, Callable[[FastAPI], str]] = {
    "loopscope": loopscope,
    "on-the-loop": on_the_loop,
    "in-a-thread": in_a_thread,
}


def build(routes: int) -> FastAPI:
    """A service with `routes` routes that each take every one of `METHODS`."""

    async def thing(request: Request) -> JSONResponse:
        return JSONResponse({"thing_id": request.path_params["thing_id"]})

    app = FastAPI(openapi_url=None)
    for number in range(routes):
        app.add_api_route(f"/things{number}/{{thing_id}}", thing, methods=list(METHODS))
    return app


def fill(children: int) -> None:
    """Give the default registry a histogram with that many children, all in use."""
    if not children:
        return
    labels = ("customer", "operation")
    spent = Histogram("shop_operation_seconds", "Time spent, by customer and operation.", labels)
    for number in range(children):
        spent.labels(f"customer-{number // 10}", f"operation-{number % 10}").observe(0.02)


async def serve(replies: IO[str], app: FastAPI, metrics: str) -> None:
    """Run the service, the heartbeat and the answers until the parent closes the pipe."""
    port = free_port()
    config = uvicorn.Config(app, port=port, access_log=False, log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    heart = Heartbeat()
    beating = asyncio.create_task(heart.beat())
    service = f"http://127.0.0.1:{port}"
    send(replies, {"service": service, "metrics": urljoin(service, metrics)})
    await answer(replies, heart.handle)
    beating.cancel()
    server.should_exit = True
    await serving


def main(replies: IO[str], way: str, children: str, routes: str, loop: str) -> None:
    """Build everything and serve."""
    # More series than the agent's default budget allows are wanted here.
    os.environ["LOOPSCOPE_MAX_SERIES"] = "100000"
    app = build(int(routes))
    fill(int(children))
    try:
        metrics = WAYS[way](app)
    except UNUSABLE as missing:
        send(replies, {"missing": str(missing)})
        return
    factory = uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(replies, app, metrics))


if __name__ == "__main__":
    main(claim_stdout(), *sys.argv[1:])
