"""What is measured of each library: how its pool is opened, and one pair of acquire and release.

One function each: an async context manager that hands out the coroutine function of one pair. It is
entered while an agent runs, since some libraries' pools are only measured if they were made under
one. Libraries are imported in here, so that one that is missing costs its own line only.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing import get_context
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, NamedTuple

from loopscope import watch_pool

Pair = Callable[[], Awaitable[Any]]
Pairs = AbstractAsyncContextManager[Pair]


@dataclass(frozen=True)
class Case:
    """One kind of pool. `server` names one of `_pool_servers.SERVERS`, whose place `open` gets.

    `uses` is how many uses of pools the agent is to see of one pair.
    """

    key: str
    title: str
    open: Callable[[Any], Pairs]
    server: str = ""
    uses: int = 1


@asynccontextmanager
async def unused(_: Any) -> AsyncIterator[Pair]:
    """What no adapter touches: the difference is what equal slices differ by."""
    semaphore = asyncio.Semaphore(2)

    async def pair() -> None:
        async with semaphore:
            pass

    yield pair


@asynccontextmanager
async def task(_: Any) -> AsyncIterator[Pair]:
    """No pool, but what some pools do for each pair, and the agent follows as well."""
    loop = asyncio.get_running_loop()

    async def pair() -> None:
        await loop.create_task(asyncio.sleep(0))

    yield pair


@asynccontextmanager
async def semaphore(_: Any) -> AsyncIterator[Pair]:
    semaphore = asyncio.Semaphore(2)
    watch_pool("bench", semaphore)

    async def pair() -> None:
        async with semaphore:
            pass

    yield pair


@asynccontextmanager
async def asyncpg_pool(dsn: str) -> AsyncIterator[Pair]:
    """Without the query by which asyncpg resets what is given back: it takes longer than all."""
    import asyncpg

    async with asyncpg.create_pool(dsn, min_size=2, max_size=2, reset=_nothing_with) as pool:

        async def pair() -> None:
            async with pool.acquire():
                pass

        yield pair


@asynccontextmanager
async def sqlalchemy_sync(_: Any) -> AsyncIterator[Pair]:
    """On SQLite and without the rollback at giving back, which both are the database's."""
    from sqlalchemy import create_engine
    from sqlalchemy.pool import QueuePool

    with TemporaryDirectory(prefix="bench-sqlite-") as directory:
        url = f"sqlite:///{directory}/db"
        engine = create_engine(url, poolclass=QueuePool, pool_reset_on_return=None)

        async def pair() -> None:
            engine.raw_connection().close()

        yield pair
        engine.dispose()


@asynccontextmanager
async def sqlalchemy_async(dsn: str) -> AsyncIterator[Pair]:
    from sqlalchemy import make_url
    from sqlalchemy.ext.asyncio import create_async_engine

    url = make_url(dsn).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, pool_reset_on_return=None)

    async def pair() -> None:
        connection = await engine.raw_connection()
        connection.close()

    yield pair
    await engine.dispose()


@asynccontextmanager
async def psycopg_pool(dsn: str) -> AsyncIterator[Pair]:
    from psycopg_pool import AsyncConnectionPool

    async with AsyncConnectionPool(dsn, min_size=2, open=False) as pool:

        async def pair() -> None:
            await pool.putconn(await pool.getconn())

        yield pair


@asynccontextmanager
async def aiomysql_pool(address: Any) -> AsyncIterator[Pair]:
    """The pool wakes up whoever waits in a task, one for each that is given back."""
    import aiomysql

    place = {"host": address.host, "port": address.port, "db": address.database}
    async with aiomysql.create_pool(user=address.user, **place) as pool:

        async def pair() -> None:
            async with pool.acquire():
                pass

        yield pair


@asynccontextmanager
async def redis_plain(url: str) -> AsyncIterator[Pair]:
    from redis.asyncio import ConnectionPool

    pool = ConnectionPool.from_url(url)
    yield _redis_pair(pool)
    await pool.aclose()


@asynccontextmanager
async def redis_blocking(url: str) -> AsyncIterator[Pair]:
    from redis.asyncio import BlockingConnectionPool

    pool = BlockingConnectionPool.from_url(url)
    yield _redis_pair(pool)
    await pool.aclose()


def _redis_pair(pool: Any) -> Pair:
    async def pair() -> None:
        await pool.release(await pool.get_connection())

    return pair


@asynccontextmanager
async def aiohttp_connector(_: Any) -> AsyncIterator[Pair]:
    """A connector whose connections lead nowhere."""
    import aiohttp
    from aiohttp.client_proto import ResponseHandler

    class Key(NamedTuple):
        host: str = "bench"
        port: int = 80
        is_ssl: bool = False

    class Wire(asyncio.Transport):
        def __init__(self, protocol: asyncio.BaseProtocol) -> None:
            super().__init__()
            self._protocol = protocol

        def is_closing(self) -> bool:
            return False

        def close(self) -> None:
            self._protocol.connection_lost(None)

    class Connector(aiohttp.BaseConnector):
        async def _create_connection(self, *_: Any) -> ResponseHandler:
            protocol = ResponseHandler(asyncio.get_running_loop())
            protocol.connection_made(Wire(protocol))
            return protocol

    connector: Any = Connector()
    request = SimpleNamespace(connection_key=Key(), proxy=None)
    timeout = aiohttp.ClientTimeout()

    async def pair() -> None:
        (await connector.connect(request, [], timeout)).release()

    yield pair
    await connector.close()


@asynccontextmanager
async def httpx_request(_: Any) -> AsyncIterator[Pair]:
    import httpcore

    async with _httpcore_pool(httpcore) as pair:
        yield pair


@asynccontextmanager
async def httpx2_request(_: Any) -> AsyncIterator[Pair]:
    import httpcore2

    async with _httpcore_pool(httpcore2) as pair:
        yield pair


@asynccontextmanager
async def _httpcore_pool(library: Any) -> AsyncIterator[Pair]:
    """A whole request of the pool's, which has no smaller pair, over a network that isn't there.

    httpcore asks a package that is rarely installed which event loop this is, and so goes through
    the whole path for it, several times a request. That would drown what is to be measured.
    """
    if "sniffio" not in sys.modules and find_spec("sniffio") is None:
        sys.modules["sniffio"] = None  # type: ignore[assignment]  # not to be looked for

    class Stream(library.AsyncNetworkStream):  # type: ignore[misc]
        async def read(self, *_: Any, **__: Any) -> bytes:
            return b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone"

        async def write(self, *_: Any, **__: Any) -> None:
            pass

        async def aclose(self) -> None:
            pass

        def get_extra_info(self, _: str) -> None:
            pass

    class Network(library.AsyncNetworkBackend):  # type: ignore[misc]
        async def connect_tcp(self, *_: Any, **__: Any) -> Stream:
            return Stream()

    async with library.AsyncConnectionPool(network_backend=Network()) as pool:

        async def pair() -> None:
            request = library.Request("GET", "http://bench/", headers=[("host", "bench")])
            response = await pool.handle_async_request(request)
            await response.aread()
            await response.aclose()

        yield pair


@asynccontextmanager
async def pymongo_checkout(url: str) -> AsyncIterator[Pair]:
    import pymongo

    async with pymongo.AsyncMongoClient[Any](url) as client:
        await client.test.things.find_one({})
        (server,) = client._topology._servers.values()
        pool = server.pool

        async def pair() -> None:
            async with pool.checkout():
                pass

        yield pair


@asynccontextmanager
async def thread_executor(_: Any) -> AsyncIterator[Pair]:
    with ThreadPoolExecutor(1, "bench") as executor:
        yield _hop(executor)


@asynccontextmanager
async def anyio_thread(_: Any) -> AsyncIterator[Pair]:
    from anyio.to_thread import run_sync

    async def pair() -> None:
        await run_sync(_nothing)

    yield pair


@asynccontextmanager
async def process_executor(_: Any) -> AsyncIterator[Pair]:
    """What the process itself does is none of ours, and not counted."""
    # Forked, its processes would have our threads' locks and no threads.
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        yield _hop(executor)


def _hop(executor: Any) -> Pair:
    loop = asyncio.get_running_loop()

    async def pair() -> None:
        await loop.run_in_executor(executor, _nothing)

    return pair


def _nothing() -> None:
    """What is run elsewhere."""


async def _nothing_with(_: object) -> None:
    """In place of a query."""


CASES: dict[str, Case] = {
    case.key: case
    for case in (
        Case("unused", "no pool: a semaphore not watched", unused, uses=0),
        Case("task", "no pool: a task of two steps", task, uses=0),
        Case("semaphore", "asyncio.Semaphore, watched", semaphore),
        Case("asyncpg", "asyncpg, without reset", asyncpg_pool, "postgres"),
        Case("sqlalchemy", "SQLAlchemy, SQLite", sqlalchemy_sync),
        Case("sqlalchemy-async", "SQLAlchemy async, asyncpg", sqlalchemy_async, "postgres"),
        Case("psycopg", "psycopg_pool, async", psycopg_pool, "postgres"),
        Case("aiomysql", "aiomysql", aiomysql_pool, "mariadb"),
        Case("redis", "redis.asyncio", redis_plain, "redis"),
        Case("redis-blocking", "redis.asyncio, blocking", redis_blocking, "redis"),
        Case("pymongo", "pymongo, async checkout", pymongo_checkout, "mongo"),
        Case("aiohttp", "aiohttp, connector", aiohttp_connector),
        Case("httpx", "httpx, request", httpx_request),
        Case("httpx2", "httpx2, request", httpx2_request),
        Case("executor", "ThreadPoolExecutor, hop", thread_executor),
        Case("anyio", "anyio.to_thread, hop", anyio_thread),
        Case("processes", "ProcessPoolExecutor, hop", process_executor),
    )
}
