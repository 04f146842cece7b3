"""The pools of ``redis.asyncio`` against a real Redis: the one that refuses, the one that waits."""

from __future__ import annotations

import asyncio
import gc
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError

from loopscope.agent import current_agent, stop_agent
from loopscope.sources.pools.redis import RedisAdapter
from tests.sources.pools.crowd import ROUTE, fifty_of_five, held, site_of, started

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

KIND = "cache.redis"
CLASSES = (
    redis.asyncio.ConnectionPool,
    redis.asyncio.BlockingConnectionPool,
    redis.asyncio.connection.AbstractConnection,
)


@pytest.fixture
def url(redis: str) -> str:
    """Where Redis is; its fixture has the name of the library."""
    return redis


def waiting_pool(url: str, **options: Any) -> Any:
    return redis.asyncio.BlockingConnectionPool.from_url(url, **{"max_connections": 5, **options})


def refusing_pool(url: str, **options: Any) -> Any:
    return redis.asyncio.ConnectionPool.from_url(url, **options)


@asynccontextmanager
async def borrowed(pool: Any) -> AsyncIterator[Any]:
    connection = await pool.get_connection()
    try:
        yield connection
    finally:
        await pool.release(connection)


async def test_who_waits_and_who_holds_is_known(url: str) -> None:
    """50 users of 5 connections: gauges in the middle, waits and uses afterwards, then nothing."""
    service = await started(KIND)
    pool = waiting_pool(url)
    await fifty_of_five(service, lambda: borrowed(pool))
    assert service.figure("create_seconds_count") == 5
    await pool.aclose()
    assert service.figure("idle") == 0


async def test_timeouts_cancellation_and_refusal_are_told_apart(url: str) -> None:
    """Who gave up, who was cancelled, and who was turned away; none of them holds anything."""
    service = await started(KIND)
    waiting, refusing = waiting_pool(url, max_connections=1), refusing_pool(url, max_connections=1)
    async with borrowed(waiting), borrowed(refusing):
        waiting.timeout = 0.01
        with pytest.raises(RedisConnectionError, match="No connection available"):
            await waiting.get_connection()
        waiting.timeout = None
        task = asyncio.create_task(waiting.get_connection())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(MaxConnectionsError) as refused:
            await refusing.get_connection()
        assert refused.value.__cause__ is None
    for kind in ("timeouts_total", "cancelled_total", "rejected_total"):
        assert service.figure(kind) == 1, kind
    assert service.figure("in_use") == service.figure("pending") == 0
    assert service.figure("wait_seconds_count") == 2
    await waiting.aclose()
    await refusing.aclose()


async def test_who_cannot_connect_is_not_said_to_have_waited_in_vain() -> None:
    """There was room in the pool, but no server: an error, no timeout, and nothing new made."""
    service = await started(KIND)
    pool = redis.asyncio.BlockingConnectionPool(host="127.0.0.1", port=1, max_connections=1)
    with pytest.raises(RedisConnectionError):
        await redis.asyncio.Redis(connection_pool=pool).ping()
    assert service.figure("rejected_total") == 1
    assert service.figure("timeouts_total") == service.figure("create_seconds_count") == 0
    assert service.figure("in_use") == service.figure("pending") == 0


async def test_commands_pipelines_and_subscriptions_are_uses(url: str) -> None:
    """Whatever takes a connection is seen, once, and so is the line of the service's it is for."""
    service = await started(KIND)
    client: Any = redis.asyncio.Redis.from_url(url)

    async def work() -> None:
        await client.set("key", "value")
        async with client.pipeline(transaction=True) as pipeline:
            await pipeline.get("key").get("key").execute()
        async with client.pubsub() as subscription:
            await subscription.subscribe("channel")
            (use,) = held(KIND)
            assert site_of(use).endswith("work")
            assert "test_redis.py" in site_of(use)

    await service.request(work)
    assert service.figure("use_seconds_count") == 3
    assert service.figure("creations_total", **ROUTE) == service.figure("create_seconds_count") == 1
    (site,) = service.values("creations_total", "site")
    assert f"test_redis.py:{inspect.getsourcelines(work)[1] + 1} " in site
    await client.aclose()


async def test_a_connection_that_breaks_while_in_use_is_made_anew(url: str) -> None:
    """The command connects once more by itself: the use goes on, and there is one more made."""
    service = await started(KIND)
    client: Any = redis.asyncio.Redis.from_url(url)

    async def work() -> None:
        await client.ping()
        await client.connection_pool.disconnect()
        await client.ping()
        async with borrowed(client.connection_pool) as connection:
            await connection.disconnect()
            await connection.send_command("PING")
            assert await connection.read_response()

    await service.request(work)
    assert service.figure("create_seconds_count") == 3
    assert service.figure("creations_total", **ROUTE) == 3
    assert service.figure("in_use") == 0
    assert service.figure("idle") == 1
    await client.aclose()


async def test_a_client_for_each_request_shows_where_it_is_made(url: str) -> None:
    """As one connection made for every request, at one line; their pools are gone with them."""
    service = await started(KIND)

    async def work() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            await client.ping()

    for _ in range(10):
        await service.request(work)
    assert service.figure("creations_total", **ROUTE) == 10
    assert len(set(service.values("creations_total", "site"))) == 1
    gc.collect()
    assert service.figure("capacity") == service.figure("idle") == 0


async def test_what_is_not_given_back_is_traced_to_its_line(url: str) -> None:
    """Also after the request that took it has ended."""
    service = await started(KIND)
    pool = waiting_pool(url)
    taken: list[Any] = []

    async def work() -> None:
        taken.append(await pool.get_connection())

    await service.request(work)
    (use,) = held(KIND)
    assert f"test_redis.py:{inspect.getsourcelines(work)[1] + 1} " in site_of(use)
    assert service.figure("in_use") == 1
    await pool.release(taken.pop())
    assert not held(KIND)
    await pool.aclose()


async def test_a_subscription_is_no_leak_for_being_held_long(url: str) -> None:
    """That is what it is for; anything else is."""
    service = await started(KIND)
    client: Any = redis.asyncio.Redis.from_url(url)
    async with client.pubsub() as subscription, borrowed(client.connection_pool):
        await subscription.subscribe("channel")
        for use in held(KIND):
            use.began -= 3600
        assert service.figure("in_use") == 2
        assert service.figure("leaked", reason="held_too_long") == 1
    await client.aclose()


async def test_pools_are_named_by_where_they_lead(url: str) -> None:
    """By host, port and database, a unix socket by its file; never by who connects."""
    service = await started(KIND)
    adapter = next(each for each in _adapters() if isinstance(each, RedisAdapter))
    sentinel_pool: Any = SentinelConnectionPool
    pools: dict[str, Any] = {
        "cache:7000/2": redis.asyncio.ConnectionPool.from_url("redis://me:secret@cache:7000/2"),
        "localhost:6379/0": redis.asyncio.ConnectionPool(),
        "redis.sock/1": redis.asyncio.ConnectionPool.from_url("unix://me@/run/redis.sock?db=1"),
        "primary/0": sentinel_pool("primary", None, password="secret"),
    }
    for name, pool in pools.items():
        assert adapter.name_of(pool) == name
    first, second = waiting_pool(url), waiting_pool(url)
    async with borrowed(first), borrowed(second):
        names = service.values("capacity", "pool")
    assert names == [url.removeprefix("redis://"), f"{url.removeprefix('redis://')} #2"]
    await first.aclose()
    await second.aclose()


async def test_a_pool_without_a_limit_has_no_capacity(url: str) -> None:
    """Older versions say 2**31, which is nobody's capacity."""
    service = await started(KIND)
    pool = refusing_pool(url, max_connections=2**31)
    async with borrowed(pool):
        assert service.figure("in_use") == 1
        assert not service.values("capacity", "pool")
    await pool.aclose()


async def test_a_pool_that_calls_the_plain_one_is_counted_once(url: str) -> None:
    """As the waiting pool of some versions does."""
    service = await started(KIND)

    class Pool(redis.asyncio.BlockingConnectionPool):
        pass

    pool: Any = Pool.from_url(url, max_connections=1)
    plain: Any = redis.asyncio.ConnectionPool
    connection = await plain.get_connection(pool)
    await pool.release(connection)
    assert service.figure("wait_seconds_count") == 0
    async with borrowed(pool):
        assert service.figure("in_use") == 1
    assert service.figure("wait_seconds_count") == service.figure("use_seconds_count") == 1
    await pool.aclose()


async def test_a_pool_that_is_dropped_is_gone(url: str) -> None:
    """Nothing of ours keeps it; its gauges go to zero."""
    service = await started(KIND)
    pool = waiting_pool(url)
    async with borrowed(pool):
        pass
    assert (service.figure("capacity"), service.figure("idle")) == (5, 1)
    await pool.aclose()
    del pool
    gc.collect()
    assert service.figure("capacity") == service.figure("idle") == 0


async def test_stopping_leaves_the_library_as_it_was(url: str) -> None:
    """And pools that were measured go on without us."""
    before = [dict(vars(each)) for each in CLASSES]
    await started(KIND)
    assert [dict(vars(each)) for each in CLASSES] != before
    pool = waiting_pool(url)
    connection = await pool.get_connection()
    stop_agent()
    assert [dict(vars(each)) for each in CLASSES] == before
    await pool.release(connection)
    assert await redis.asyncio.Redis(connection_pool=pool).ping()
    await pool.aclose()


async def test_what_stands_in_is_a_coroutine_function_too() -> None:
    """Others look."""
    await started(KIND)
    assert inspect.iscoroutinefunction(redis.asyncio.BlockingConnectionPool.get_connection)
    assert inspect.iscoroutinefunction(redis.asyncio.ConnectionPool.release)


@pytest.mark.quiet_faults
async def test_a_version_that_is_too_old_is_left_alone() -> None:
    """It is said once, and nothing of the library is touched."""
    service = await started(KIND)
    adapter = next(each for each in _adapters() if isinstance(each, RedisAdapter))
    old = ModuleType("redis")
    vars(old)["__version__"] = "4.6.0"
    adapter.arrived(old)
    assert service.figure("in_use") == 0
    assert not hasattr(redis.asyncio.ConnectionPool.release, "__wrapped__")


def _adapters() -> list[Any]:
    agent = current_agent()
    assert agent is not None
    return agent.pools._adapters  # noqa: SLF001
