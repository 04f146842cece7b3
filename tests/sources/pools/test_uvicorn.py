"""Real uvicorn servers: who is connected, and who was turned away before any application."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import h11_impl, httptools_impl

from loopscope import Loopscope
from loopscope.agent import stop_agent
from tests.harness import call, label_sets, published

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

MODULES = (h11_impl, httptools_impl)
EMPTY = [(b"content-length", b"0")]
Client = Callable[[], Awaitable[int]]
"""Asks once more over its connection, and returns the status."""


async def hello(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": EMPTY})
    await send({"type": "http.response.body", "body": b""})


class Service(uvicorn.Server):
    """A server on the test's own loop. Its signals are nobody's."""

    def __init__(self, app: Any = hello, **options: Any) -> None:
        config = uvicorn.Config(app, port=0, log_level="critical", ws="none", **options)
        super().__init__(config)

    @property
    def port(self) -> int:
        return int(self.servers[0].sockets[0].getsockname()[1])

    @property
    def pool(self) -> str:
        return f"uvicorn 127.0.0.1:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self._serve())
        while not self.started:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.25)  # it asks itself every 0.1 s whether to go on
        try:
            yield
        finally:
            self.should_exit = True
            await task

    @asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[list[Client]]:
        """So many with a connection each, open until the end."""
        opened = [await asyncio.open_connection("127.0.0.1", self.port) for _ in range(count)]
        try:
            yield [partial(ask, *connection) for connection in opened]
        finally:
            for _, writer in opened:
                writer.close()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> int:
    """The status that a request is answered with."""
    writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    line = await reader.readline()
    while await reader.readline() not in (b"\r\n", b""):
        pass
    return int(line.split()[1])


def figure(name: str, server: str) -> float:
    return published(f"loopscope_pool_{name}", pool=server, kind="listener")


async def scraped(name: str, server: str) -> float:
    return await asyncio.to_thread(figure, name, server)


@pytest.mark.parametrize("http", ["h11", "httptools"])
async def test_every_503_of_the_limit_is_counted(http: Any) -> None:
    """Ten connections at a limit of four: each that is answered 503 counts, and no other."""
    app = Loopscope(hello)
    server = Service(app, http=http, limit_concurrency=4)
    async with server.running():
        assert await scraped("capacity", server.pool) == 3
        async with server.clients(3) as few:
            assert [await each() for each in few] == [200] * 3
            assert await scraped("in_use", server.pool) == 3
            assert await scraped("rejected_total", server.pool) == 0
            async with server.clients(7) as more:
                statuses = [await each() for each in (*few, *more)]
                assert 503 in statuses
                assert await scraped("rejected_total", server.pool) == statuses.count(503)


async def test_without_a_limit_connections_are_known_all_the_same() -> None:
    """There is no capacity then; what is in use counts idle connections, as uvicorn does."""
    server = Service(Loopscope(hello))
    async with server.running(), server.clients(2) as clients:
        assert [await each() for each in clients] == [200] * 2
        assert await scraped("in_use", server.pool) == 2
        limited = await asyncio.to_thread(label_sets, "loopscope_pool_capacity")
        assert server.pool not in {labels["pool"] for labels in limited}


async def test_a_server_that_was_there_first_is_found() -> None:
    """An agent that starts with a request, in whichever application, sees the servers that run."""
    server = Service(lifespan="off", limit_concurrency=8)
    async with server.running():
        await call(Loopscope(hello))
        await asyncio.sleep(0.25)
        assert await scraped("capacity", server.pool) == 7


async def test_two_servers_are_told_apart() -> None:
    """Who is turned away by one is not turned away by the other."""
    app = Loopscope(hello)
    strict, easy = Service(app, limit_concurrency=1), Service(app, limit_concurrency=9)
    async with strict.running(), easy.running():
        for server, status in ((strict, 503), (easy, 200)):
            async with server.clients(1) as (client,):
                assert await client() == status
        assert await scraped("rejected_total", strict.pool) == 1
        assert await scraped("rejected_total", easy.pool) == 0


async def test_a_server_that_has_shut_down_is_gone() -> None:
    """Its gauges go to zero and nothing of ours keeps it."""
    app = Loopscope(hello)
    await call(app)
    server = Service(lifespan="off", limit_concurrency=4)
    async with server.running():
        pool = server.pool
        assert await scraped("capacity", pool) == 3
    assert await scraped("capacity", pool) == 0
    del server
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Service]


async def test_stopping_leaves_uvicorn_as_it_was() -> None:
    """And a server that runs goes on."""
    before = [uvicorn.Server.on_tick, *(vars(each)["service_unavailable"] for each in MODULES)]
    server = Service(lifespan="off", limit_concurrency=1)
    async with server.running():
        await call(Loopscope(hello))
        await asyncio.sleep(0.25)
        await scraped("capacity", server.pool)
        stop_agent()
        after = [uvicorn.Server.on_tick, *(vars(each)["service_unavailable"] for each in MODULES)]
        assert after == before
        async with server.clients(1) as (client,):
            assert await client() == 503
