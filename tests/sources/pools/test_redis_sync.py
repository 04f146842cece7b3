"""The pools of redis' synchronous half, in the threads of an asynchronous service."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import anyio.to_thread
import pytest
import redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError

from loopscope.agent import stop_agent
from tests.harness import published
from tests.sources.pools.crowd import HELD, ROUTE, Work, held, site_of, started

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

KIND = "cache.redis"
CLASSES = (
    redis.ConnectionPool,
    redis.BlockingConnectionPool,
    redis.connection.AbstractConnection,
)


@pytest.fixture
def url(redis: str) -> str:
    """Where Redis is; its fixture has the name of the library."""
    return redis


def waiting_pool(url: str, **options: Any) -> Any:
    return redis.BlockingConnectionPool.from_url(url, **{"max_connections": 5, **options})


def refusing_pool(url: str, **options: Any) -> Any:
    return redis.ConnectionPool.from_url(url, **options)


def a_client(pool: Any) -> Any:
    return redis.Redis(connection_pool=pool)


def in_a_thread(work: Callable[[], object]) -> Work:
    """What an endpoint that is a plain function comes to."""

    async def run() -> None:
        await anyio.to_thread.run_sync(work)

    return run


async def test_who_waits_and_who_holds_is_known(url: str) -> None:
    """20 threads and 5 connections: gauges in the middle, waits and uses afterwards."""
    service = await started(KIND)
    pool = waiting_pool(url)
    truth = {"wait": 0.0, "use": 0.0}
    looked = threading.Event()

    def use() -> None:
        asked = time.perf_counter()
        connection = pool.get_connection()
        got = time.perf_counter()
        looked.wait()
        time.sleep(HELD)
        truth["use"] += time.perf_counter() - got
        pool.release(connection)
        truth["wait"] += got - asked

    service.work = in_a_thread(use)
    requests = [asyncio.create_task(service.request()) for _ in range(20)]
    figure = service.figure
    while figure("in_use") + figure("pending") < 20:
        await asyncio.sleep(0.01)
    try:
        assert (figure("capacity"), figure("in_use"), figure("idle")) == (5, 5, 0)
    finally:
        looked.set()
        await asyncio.gather(*requests)
    assert (figure("in_use"), figure("pending"), figure("idle")) == (0, 0, 5)
    assert figure("wait_seconds_sum") == pytest.approx(truth["wait"], rel=0.05)
    assert figure("use_seconds_sum") == pytest.approx(truth["use"], rel=0.05)
    for name in ("wait", "use"):
        by_route = figure(f"route_{name}_seconds_total", **ROUTE)
        assert by_route == pytest.approx(figure(f"{name}_seconds_sum"))
    assert published("loopscope_request_phase_seconds_total", phase="pool_wait", **ROUTE) > 0
    assert figure("create_seconds_count") == figure("creations_total", **ROUTE) == 5
    pool.disconnect()
    assert figure("idle") == 0


async def test_timeouts_and_refusal_are_told_apart(url: str) -> None:
    """Who gave up and who was turned away; neither holds anything."""
    service = await started(KIND)
    waiting = waiting_pool(url, max_connections=1, timeout=0.01)
    refusing = refusing_pool(url, max_connections=1)

    def fail() -> None:
        taken = waiting.get_connection(), refusing.get_connection()
        with pytest.raises(RedisConnectionError, match="No connection available"):
            waiting.get_connection()
        with pytest.raises(MaxConnectionsError):
            refusing.get_connection()
        waiting.release(taken[0])
        refusing.release(taken[1])

    await asyncio.to_thread(fail)
    assert service.figure("timeouts_total") == service.figure("rejected_total") == 1
    assert service.figure("in_use") == service.figure("pending") == 0
    waiting.disconnect()
    refusing.disconnect()


async def test_commands_and_pipelines_are_uses(url: str) -> None:
    """Whatever takes a connection is seen, and so is the line of the service's it is for."""
    service = await started(KIND)
    pool = refusing_pool(url)
    client = a_client(pool)

    def use() -> None:
        client.set("key", "value")
        client.pipeline().get("key").get("key").execute()
        connection = pool.get_connection()
        (use,) = held(KIND)
        assert f"test_redis_sync.py:{begins + 3} " in site_of(use)
        connection.disconnect()
        connection.send_command("PING")  # connects anew by itself
        assert connection.read_response()
        pool.release(connection)

    begins = inspect.getsourcelines(use)[1]
    await service.request(in_a_thread(use))
    assert service.figure("use_seconds_count") == 3
    assert service.figure("creations_total", **ROUTE) == service.figure("create_seconds_count") == 2
    assert f"test_redis_sync.py:{begins + 1} " in service.values("creations_total", "site")[0]
    client.close()


async def test_a_subscription_is_no_leak_for_being_held_long(url: str) -> None:
    """That is what it is for."""
    service = await started(KIND)
    client = a_client(refusing_pool(url))
    subscription = client.pubsub()
    await asyncio.to_thread(subscription.subscribe, "channel")
    (use,) = held(KIND)
    use.began -= 3600
    assert service.figure("in_use") == 1
    assert service.figure("leaked") == 0
    subscription.close()
    client.close()


async def test_a_pool_that_is_dropped_is_gone(url: str) -> None:
    """Nothing of ours keeps it; its gauges go to zero."""
    service = await started(KIND)
    pool = waiting_pool(url)
    await asyncio.to_thread(a_client(pool).ping)
    assert (service.figure("capacity"), service.figure("idle")) == (5, 1)
    pool.disconnect()
    del pool
    gc.collect()
    assert service.figure("capacity") == service.figure("idle") == 0


async def test_stopping_leaves_the_library_as_it_was(url: str) -> None:
    """And pools that were measured go on without us."""
    before = [dict(vars(each)) for each in CLASSES]
    await started(KIND)
    assert [dict(vars(each)) for each in CLASSES] != before
    pool = waiting_pool(url)
    connection = await asyncio.to_thread(pool.get_connection)
    stop_agent()
    assert [dict(vars(each)) for each in CLASSES] == before
    pool.release(connection)
    assert await asyncio.to_thread(a_client(pool).ping)
    pool.disconnect()
