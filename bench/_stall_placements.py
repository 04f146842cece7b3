"""Where a stall happens: in a request's handler, dependency or middleware, a task, a callback.

The application is FastAPI's, with plain Starlette routes beside its own, called as uvicorn calls
it: each request is a task of its own whose coroutine is `run_asgi`. Bystanders are requests that
await and never block; whoever names one of them accuses an innocent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import Depends, FastAPI
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from _stall_kinds import Block
from _stall_loop_kinds import stamped
from _stall_records import Truth

HANDLER_ROUTE = "/reports/{kind}"
MIDDLEWARE_ROUTE = "/checked/{kind}"
DEPENDENCY_ROUTE = "/guarded/{kind}"
BYSTANDER_ROUTE = "/bystander"
TASK_NAME = "refresh-cache"
_BYSTANDERS = 2
_BYSTANDER_STEPS = 10
_BYSTANDER_PAUSE = 0.01

Blocks = dict[str, tuple[Truth, Block]]
"""What the next request with that path is to do."""


class BlockingMiddleware:
    """Blocks before it calls on, if the request's path is one that it is to block at."""

    def __init__(self, app: ASGIApp, blocks: Blocks) -> None:
        self.app = app
        self._blocks = blocks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith(MIDDLEWARE_ROUTE.partition("{")[0]) and path in self._blocks:
            stamped(*self._blocks.pop(path))
        await self.app(scope, receive, send)


def service(blocks: Blocks) -> FastAPI:
    """The application: three routes that can be made to block, and one that never does."""

    async def report(request: Request) -> PlainTextResponse:
        stamped(*blocks.pop(request.url.path))
        return PlainTextResponse("done")

    async def checked(request: Request) -> PlainTextResponse:
        return PlainTextResponse("done")

    async def bystander(request: Request) -> PlainTextResponse:
        for _ in range(_BYSTANDER_STEPS):
            await asyncio.sleep(_BYSTANDER_PAUSE)
        return PlainTextResponse("done")

    routes: list[BaseRoute] = [
        Route(HANDLER_ROUTE, report),
        Route(MIDDLEWARE_ROUTE, checked),
        Route(BYSTANDER_ROUTE, bystander),
    ]
    app = FastAPI(routes=routes, middleware=[Middleware(BlockingMiddleware, blocks=blocks)])

    async def permit(request: Request) -> None:
        stamped(*blocks.pop(request.url.path))

    async def guarded(kind: str) -> PlainTextResponse:
        return PlainTextResponse("done")

    app.add_api_route(DEPENDENCY_ROUTE, guarded, dependencies=[Depends(permit)])
    return app


class Service:
    """The application with a tool's middleware around it, its lifespan, and its bystanders."""

    def __init__(self, wrap: Callable[[ASGIApp], ASGIApp]) -> None:
        self._blocks: Blocks = {}
        self._app = wrap(service(self._blocks))
        self._lifespan: asyncio.Task[None] | None = None
        self._leaving = asyncio.Event()
        self._bystanders: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Run the application's start-up."""
        started = asyncio.Event()
        said = iter(("lifespan.startup", "lifespan.shutdown"))

        async def receive() -> Message:
            event = next(said)
            if event == "lifespan.shutdown":
                await self._leaving.wait()
            return {"type": event}

        async def send(message: Message) -> None:
            started.set()

        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}
        self._lifespan = asyncio.create_task(run_asgi(self._app, scope, receive, send))
        await started.wait()

    async def stop(self) -> None:
        """Run the application's shutdown."""
        self._leaving.set()
        if self._lifespan is not None:
            await self._lifespan

    def welcome_bystanders(self) -> None:
        """Begin with the innocent requests."""
        self._bystanders = [asyncio.create_task(self._stand_by()) for _ in range(_BYSTANDERS)]

    async def dismiss_bystanders(self) -> None:
        """End the innocent requests."""
        for task in self._bystanders:
            task.cancel()
        await asyncio.gather(*self._bystanders, return_exceptions=True)

    async def in_handler(self, truth: Truth, block: Block) -> None:
        """Block in the handler of a request."""
        truth.culprits = [HANDLER_ROUTE]
        await self._block_at(HANDLER_ROUTE.format(kind=truth.kind), truth, block)

    async def in_middleware(self, truth: Truth, block: Block) -> None:
        """Block in a middleware, before the request is routed."""
        truth.culprits = [MIDDLEWARE_ROUTE]
        await self._block_at(MIDDLEWARE_ROUTE.format(kind=truth.kind), truth, block)

    async def in_dependency(self, truth: Truth, block: Block) -> None:
        """Block in what FastAPI resolves before it calls the handler."""
        truth.culprits = [DEPENDENCY_ROUTE]
        await self._block_at(DEPENDENCY_ROUTE.format(kind=truth.kind), truth, block)

    async def in_task(self, truth: Truth, block: Block) -> None:
        """Block in a background task, some steps after its start."""

        async def refresh() -> None:
            await asyncio.sleep(0.001)
            stamped(truth, block)

        truth.culprits = [TASK_NAME, refresh.__qualname__]
        await asyncio.create_task(refresh(), name=TASK_NAME)

    async def in_callback(self, truth: Truth, block: Block) -> None:
        """Block in a plain callback: neither route nor task to name."""
        done = asyncio.Event()

        def on_change() -> None:
            stamped(truth, block)
            done.set()

        asyncio.get_running_loop().call_soon(on_change)
        await done.wait()

    async def _block_at(self, path: str, truth: Truth, block: Block) -> None:
        self._blocks[path] = truth, block
        await self._request(path)

    async def _stand_by(self) -> None:
        while True:
            await self._request(BYSTANDER_ROUTE)

    async def _request(self, path: str) -> None:
        scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", b"bench")],
            "client": ("127.0.0.1", 40000),
            "server": ("127.0.0.1", 80),
            "state": {},
        }
        await asyncio.create_task(run_asgi(self._app, scope, _receive, _send))


async def run_asgi(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """What a request's task runs; of the same name as uvicorn's."""
    await app(scope, receive, send)


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send(message: Message) -> None:
    return None


PLACEMENTS: dict[str, Callable[[Service, Truth, Block], Awaitable[None]]] = {
    "handler": Service.in_handler,
    "task": Service.in_task,
    "middleware": Service.in_middleware,
    "dependency": Service.in_dependency,
    "callback": Service.in_callback,
}
