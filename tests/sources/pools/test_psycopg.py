"""psycopg's pools, and its connections without one, against a real PostgreSQL."""

from __future__ import annotations

import asyncio
import gc
import inspect
from typing import Any

import psycopg
import pytest
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    PoolClosed,
    PoolTimeout,
    TooManyRequests,
)

from loopscope.agent import stop_agent
from tests.harness import label_sets
from tests.sources.pools.users import HELD, check_crowd, check_crowd_in_threads, started

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

KIND = "db.psycopg"
PATCHED = (ConnectionPool, AsyncConnectionPool, psycopg.Connection, psycopg.AsyncConnection)


def a_pool(postgres: str, **options: Any) -> AsyncConnectionPool:
    """A pool that always has five connections, unless the options say otherwise."""
    return AsyncConnectionPool(postgres, **{"min_size": 5, "open": False, **options})


async def test_who_waits_and_who_holds_is_known(postgres: str) -> None:
    """Of a pool that was there before the agent; its own connections count once."""
    async with a_pool(postgres) as pool:
        service = await started(KIND)
        await check_crowd(service, pool.connection)
        assert service.names() == ["postgres"]


async def test_who_waits_in_threads_is_known(postgres: str) -> None:
    """Endpoints that run in threads wait there, and their requests are in phase pool_wait."""
    service = await started(KIND)
    pool = ConnectionPool(postgres, min_size=5, open=False)
    await asyncio.to_thread(pool.open)
    try:
        await check_crowd_in_threads(service, pool.connection)
    finally:
        await asyncio.to_thread(pool.close)
    assert service.figure("create_seconds_count") == 5


async def test_timeouts_cancellation_and_refusal_are_told_apart(postgres: str) -> None:
    """Who gave up, who was cancelled, and who was turned away; none of them holds anything."""
    service = await started(KIND)
    async with a_pool(postgres, min_size=1, max_waiting=2) as pool, pool.connection():
        with pytest.raises(PoolTimeout):
            await pool.getconn(timeout=0.01)
        waiting = asyncio.create_task(pool.getconn())
        await asyncio.sleep(0.01)
        with pytest.raises(TooManyRequests):
            await pool.getconn()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    figure = service.figure
    assert figure("timeouts_total") == figure("cancelled_total") == figure("rejected_total") == 1
    assert figure("in_use") == figure("pending") == 0


async def test_a_null_pool_makes_a_connection_for_each_use(postgres: str) -> None:
    """Made by who wants it, and seen so; what may be used at once is its capacity."""
    service = await started(KIND)
    async with AsyncNullConnectionPool(postgres, max_size=2, open=False) as pool:

        async def use() -> None:
            async with pool.connection():
                assert (service.figure("capacity"), service.figure("in_use")) == (2, 1)

        service.work = use
        for _ in range(3):
            await service.call()
        assert service.sites() == {("/work", use.__qualname__): 3}
        assert service.figure("use_seconds_count") == 3
        assert service.figure("idle") == 0


async def test_a_connection_that_breaks_while_in_use_is_given_back(postgres: str) -> None:
    """The pool makes another, in nobody's name."""
    service = await started(KIND)
    async with a_pool(postgres, min_size=1) as pool:
        connection = await pool.getconn()
        await connection.close()
        assert service.figure("in_use") == 1
        await pool.putconn(connection)
        assert service.figure("in_use") == 0
        async with pool.connection():
            assert service.figure("create_seconds_count") == 2
        assert service.sites() == {("", ""): 2}


async def test_pools_are_named_by_where_they_lead() -> None:
    """By host, port and database, without who connects and how; else by the name they have."""
    service = await started(KIND)
    given: list[dict[str, Any]] = [
        {"conninfo": "host=localhost port=1 user=somebody password=secret dbname=shop"},
        {"conninfo": "postgresql://somebody:secret@localhost:1", "kwargs": {"dbname": "toys"}},
        {"conninfo": "", "name": "mine"},
    ]
    pools = [AsyncConnectionPool(**options, open=False) for options in given]
    for pool in pools:
        with pytest.raises(PoolClosed):
            await pool.getconn()
    assert service.names() == ["localhost:1/shop", "localhost:1/toys", "mine"]
    assert service.figure("rejected_total", pool="mine") == 1


async def test_a_pool_that_is_dropped_is_gone(postgres: str) -> None:
    """Nothing of ours keeps it; its gauges go to zero."""
    service = await started(KIND)
    async with a_pool(postgres) as pool, pool.connection():
        assert service.figure("capacity") == 5
    del pool
    gc.collect()
    assert service.figure("capacity") == service.figure("idle") == 0


async def test_connections_without_a_pool_are_measured(postgres: str) -> None:
    """Each as one that is made for one use, whichever function of psycopg's makes it."""
    service = await started(KIND)

    async def use() -> None:
        async with await psycopg.AsyncConnection.connect(postgres) as connection:
            await connection.execute("select 1")
            assert service.places() == [use.__qualname__]

    def job() -> None:
        with psycopg.connect(postgres), psycopg.Connection.connect(postgres):
            assert service.figure("in_use") == 2

    service.work, service.job = use, job
    await service.call("/work")
    await service.call("/threads")
    assert service.names() == ["postgres (no pool)"]
    assert service.sites() == {("/work", use.__qualname__): 1, ("/threads", job.__qualname__): 2}
    assert service.figure("in_use") == 0
    assert service.figure("use_seconds_count") == 3
    with pytest.raises(psycopg.OperationalError):
        await psycopg.AsyncConnection.connect("host=localhost port=1 dbname=shop")
    assert service.figure("rejected_total", pool="localhost:1/shop (no pool)") == 1


@pytest.mark.filterwarnings("ignore::ResourceWarning")
async def test_a_forgotten_connection_is_not_in_use(postgres: str) -> None:
    """It ends as garbage."""
    service = await started(KIND)
    forgotten = await psycopg.AsyncConnection.connect(postgres)
    assert service.figure("in_use") == 1
    del forgotten
    gc.collect()
    assert service.figure("in_use") == 0
    assert service.figure("use_seconds_count") == 1


async def test_stopping_leaves_the_library_as_it_was(postgres: str) -> None:
    """And what was measured goes on without us."""
    before = [dict(vars(each)) for each in PATCHED]
    connect = psycopg.connect
    await started(KIND)
    assert psycopg.connect != connect
    for stays in (psycopg.AsyncConnection, AsyncConnectionPool):
        changed = [
            name for name in ("connect", "close", "getconn", "putconn") if name in vars(stays)
        ]
        assert all(inspect.iscoroutinefunction(getattr(stays, name)) for name in changed)
    async with a_pool(postgres, min_size=1) as pool, pool.connection():
        lonely = await psycopg.AsyncConnection.connect(postgres)
        stop_agent()
        assert [dict(vars(each)) for each in PATCHED] == before
        assert psycopg.connect == connect
        await asyncio.sleep(HELD / 10)
        await lonely.close()
    assert label_sets("loopscope_pool_in_use") == []
