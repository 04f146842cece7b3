"""A service whose endpoint does what a test says, and an HTTP server for it to ask."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from anyio.to_thread import run_sync
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.sources.pools.use import Use
from tests.harness import call, label_sets, published

Work = Callable[[], Awaitable[Any]]


class Service:
    """A service behind the middleware, and what is published of its pools of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.work: Callable[[], Any] = lambda: None

        async def coroutine(request: Request) -> Response:
            await self.work()
            return PlainTextResponse("done")

        def in_thread(request: Request) -> Response:
            self.work()
            return PlainTextResponse("done")

        async def nothing(request: Request) -> Response:
            return PlainTextResponse("done")

        routes = [Route("/work", coroutine), Route("/thread", in_thread), Route("/", nothing)]
        self.app = Loopscope(Starlette(routes=routes))

    async def requests(self, work: Callable[[], Any], count: int = 1, path: str = "/work") -> None:
        """So many requests at a time, each of which does ``work``."""
        self.work = work
        await asyncio.gather(*(call(self.app, path) for _ in range(count)))

    def figure(self, name: str, **labels: str) -> float:
        return published(f"loopscope_pool_{name}", kind=self.kind, **labels)

    def names(self) -> list[str]:
        """What its pools are called."""
        found = label_sets("loopscope_pool_in_use", kind=self.kind)
        return sorted(labels["pool"] for labels in found)

    def creations(self) -> list[dict[str, str]]:
        """Who made new connections."""
        return label_sets("loopscope_pool_creations_total", kind=self.kind)

    def held(self) -> list[Use]:
        """What is in use right now."""
        agent = current_agent()
        assert agent is not None
        return [use for use in agent.pools.book.held() if use.meter.labels[1] == self.kind]


async def started(kind: str) -> Service:
    """A service that runs already, as it does when a client is made later."""
    service = Service(kind)
    await call(service.app)
    return service


async def until(condition: Callable[[], bool]) -> None:
    """Come back once ``condition`` holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def in_thread(work: Callable[[], Any]) -> Any:
    return await run_sync(work)


@asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """The URL of a server; it waits for as many seconds as the path says, ``<url>/0.05``.

    ``<url>/0?endless`` is an answer that does not end.
    """
    writers: set[asyncio.StreamWriter] = set()
    tasks: set[asyncio.Task[Any]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        writers.add(writer)
        tasks.add(task)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path, _, query = head.split()[1].partition(b"?")
                await asyncio.sleep(float(path.strip(b"/") or 0))
                length = b"5" if query else b"4"
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: " + length + b"\r\n\r\ndone")

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
