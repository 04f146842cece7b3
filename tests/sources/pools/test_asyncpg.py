"""asyncpg's pool against a real PostgreSQL: five connections, and more who want one."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.admin.pools import pools
from loopscope.agent import current_agent, stop_agent
from tests.harness import call, label_sets, published

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

KIND = {"kind": "db.asyncpg"}
HELD = 0.05
Work = Callable[[], Awaitable[None]]


def service(work: Work) -> Loopscope:
    async def endpoint(request: Request) -> Response:
        await work()
        return PlainTextResponse("done")

    return Loopscope(Starlette(routes=[Route("/work", endpoint), Route("/", endpoint)]))


async def nothing() -> None:
    """What the first request does, so that the agent is there before the pool."""


made: weakref.WeakSet[Any] = weakref.WeakSet()


@pytest.fixture(autouse=True)
async def nothing_open(anyio_backend: Any) -> AsyncIterator[None]:
    """No pool of a test that failed stays open: uvloop can wait for it for ever as it closes."""
    yield
    for pool in list(made):
        pool.terminate()
    made.clear()


async def started(postgres: str, **options: Any) -> tuple[Any, Loopscope, list[Work]]:
    """A pool made in a running service, which does whatever is put into the list."""
    work: list[Work] = [nothing]
    app = service(lambda: work[0]())
    await call(app)
    pool = await asyncpg.create_pool(postgres, **{"min_size": 5, "max_size": 5, **options})
    made.add(pool)
    return pool, app, work


def figure(name: str, **labels: str) -> float:
    return published(f"loopscope_pool_{name}", **KIND, **labels)


async def test_who_waits_and_who_holds_is_known(postgres: str) -> None:
    """50 users of 5 connections: gauges in the middle, waits and uses afterwards, then nothing."""
    pool, app, work = await started(postgres)
    truth = {"wait": 0.0, "use": 0.0, "until given back": 0.0}
    looked = asyncio.Event()

    async def use() -> None:
        asked = time.perf_counter()
        async with pool.acquire() as connection:
            got = time.perf_counter()
            await connection.execute("select 1")
            await looked.wait()
            await asyncio.sleep(HELD / 5)
            truth["use"] += time.perf_counter() - got
        truth["until given back"] += time.perf_counter() - got
        truth["wait"] += got - asked

    work[0] = use
    async with asyncio.TaskGroup() as requests:
        for _ in range(50):
            requests.create_task(call(app, "/work"))
        for _ in range(100):
            await asyncio.sleep(HELD)
            if figure("pending") == 45:
                break
        await asyncio.sleep(HELD)
        gauges = [figure(name) for name in ("capacity", "in_use", "idle", "pending")]
        oldest = figure("oldest_wait_seconds")
        looked.set()
    afterwards = [figure(name) for name in ("capacity", "in_use", "idle", "pending")]
    await pool.close()
    assert gauges == [5, 5, 0, 45]
    assert afterwards == [5, 0, 5, 0]
    assert oldest >= HELD
    assert figure("wait_seconds_count") == figure("use_seconds_count") == 50
    assert 45 * HELD <= figure("wait_seconds_sum") <= truth["wait"]
    assert truth["use"] <= figure("use_seconds_sum") <= truth["until given back"]
    route = {"http_route": "/work"}
    assert figure("route_wait_seconds_total", **route) == pytest.approx(figure("wait_seconds_sum"))
    assert figure("route_use_seconds_total", **route) == pytest.approx(figure("use_seconds_sum"))
    phase = published("loopscope_request_phase_seconds_total", phase="pool_wait", **route)
    loop = published("loopscope_request_phase_seconds_total", phase="loop_wait", **route)
    assert phase + loop >= 0.95 * truth["wait"]
    assert phase > loop


async def test_the_api_has_each_pool_in_one_shape(postgres: str) -> None:
    """With its routes, those that used it most first."""
    pool, app, work = await started(postgres)

    async def use() -> None:
        async with pool.acquire():
            await asyncio.sleep(HELD)

    work[0] = use
    await asyncio.gather(*(call(app, "/work") for _ in range(10)))
    agent = current_agent()
    assert agent is not None
    found, *_ = (await asyncio.to_thread(pools, agent))["pools"]  # nobody waits for another
    assert (found["kind"], found["capacity"], found["in_use"]) == ("db.asyncpg", 5, 0)
    assert found["wait"]["count"] == found["use"]["count"] == 10
    assert found["routes"][0]["route"] == "/work"
    assert found["routes"][0]["use_s"] == pytest.approx(found["use"]["seconds"])
    await pool.close()


async def test_timeouts_cancellation_and_refusal_are_told_apart(postgres: str) -> None:
    """Who gave up, who was cancelled, and who got an error; none of them holds anything."""
    pool, _, _ = await started(postgres, min_size=1, max_size=1)
    async with pool.acquire():
        with pytest.raises(TimeoutError):
            await pool.acquire(timeout=0.01)
        waiting = asyncio.create_task(pool.fetchval("select 1"))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    await pool.close()
    with pytest.raises(asyncpg.InterfaceError):
        await pool.acquire()
    assert figure("timeouts_total") == figure("cancelled_total") == figure("rejected_total") == 1
    assert figure("in_use") == figure("pending") == 0


async def test_connections_made_are_timed(postgres: str) -> None:
    """Each with how long it took."""
    pool, _, _ = await started(postgres, min_size=3)
    assert figure("create_seconds_count") == 3
    assert figure("create_seconds_sum") > 0
    await pool.close()


async def test_a_connection_that_breaks_while_in_use_is_given_back(postgres: str) -> None:
    """The pool never sees it again, and neither do we."""
    pool, _, _ = await started(postgres)
    async with pool.acquire() as connection:
        connection.terminate()
        await asyncio.sleep(0.05)
    assert figure("in_use") == 0
    assert figure("use_seconds_count") == 1
    await pool.close()


async def test_pools_are_named_by_where_they_lead(postgres: str) -> None:
    """By host, port and database, without who connects and how; the second one by a number."""
    first, _, _ = await started(postgres, password="secret")
    second = await asyncpg.create_pool(postgres, min_size=1, max_size=2)
    await first.fetchval("select 1")
    await second.fetchval("select 1")
    found = [each for each in label_sets("loopscope_pool_capacity") if KIND.items() <= each.items()]
    names = sorted(labels["pool"] for labels in found)
    assert len(names) == 2
    assert names[1] == f"{names[0]} #2"
    assert not [name for name in names if "secret" in name or "@" in name]
    await first.close()
    await second.close()


async def test_a_pool_that_is_dropped_is_gone(postgres: str) -> None:
    """Nothing of ours keeps it; its gauges go to zero."""
    pool, _, _ = await started(postgres)
    await pool.fetchval("select 1")
    assert figure("capacity") == 5
    await pool.close()
    del pool
    gc.collect()
    assert figure("capacity") == figure("idle") == 0


async def test_stopping_leaves_the_library_as_it_was(postgres: str) -> None:
    """And pools that were measured go on without us."""
    before = (asyncpg.Pool, asyncpg.pool.Pool, dict(vars(asyncpg.pool.Pool)))
    pool, _, _ = await started(postgres)
    assert type(pool) is asyncpg.Pool
    assert isinstance(pool, before[0])
    stop_agent()
    assert (asyncpg.Pool, asyncpg.pool.Pool) == before[:2]
    assert dict(vars(asyncpg.pool.Pool)) == before[2]
    assert await pool.fetchval("select 1") == 1
    await pool.close()
