"""asyncpg's pool against a real PostgreSQL: five connections, and more who want one."""

from __future__ import annotations

import asyncio
import gc
import warnings
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
from loopscope.admin.figures import of_worker
from loopscope.agent import current_agent, stop_agent
from loopscope.sources.chores import CHORES
from tests.harness import call, label_sets, published
from tests.sources.pools.users import check_crowd
from tests.sources.pools.users import started as users_of

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
    """50 users of 5 connections."""
    users = await users_of(KIND["kind"])
    async with asyncpg.create_pool(postgres, min_size=5, max_size=5) as pool:
        await check_crowd(users, pool.acquire)


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
    listed = (await asyncio.to_thread(of_worker(agent).pools))["pools"]
    (found,) = [each for each in listed if each["kind"] == "db.asyncpg"]
    assert (found["capacity"], found["in_use"]) == (5, 0)
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
    found = label_sets("loopscope_pool_capacity", **KIND)
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


async def test_a_connection_is_made_by_a_line_of_the_service(postgres: str) -> None:
    """By route and function, for a pool that grows; and it is none without a pool."""
    pool, app, work = await started(postgres, min_size=0)

    async def use() -> None:
        await pool.fetchval("select 1")

    work[0] = use
    await call(app, "/work")
    (made,) = label_sets("loopscope_pool_creations_total")
    assert (made["pool"], made["http_route"]) == ("postgres", "/work")
    assert made["site"].endswith(use.__qualname__)
    assert [labels["pool"] for labels in label_sets("loopscope_pool_in_use", **KIND)] == [
        "postgres"
    ]
    await pool.close()


@pytest.mark.parametrize("connect", [asyncpg.connect, lambda dsn: asyncpg.connect(dsn)])
async def test_connections_without_a_pool_are_measured(
    postgres: str, connect: Callable[[str], Awaitable[Any]]
) -> None:
    """Each as one that is made for one use, by a name imported before the agent as well."""
    work: list[Work] = [nothing]
    app = service(lambda: work[0]())
    await call(app)
    address = {"pool": "postgres (no pool)"}

    async def use() -> None:
        connection = await connect(postgres)
        assert figure("in_use", **address) == 1
        await connection.close()

    work[0] = use
    for _ in range(3):
        await call(app, "/work")
    (made,) = label_sets("loopscope_pool_creations_total")
    assert made["http_route"] == "/work"
    assert made["site"].endswith(use.__qualname__)
    assert figure("creations_total", **address) == figure("use_seconds_count", **address) == 3
    assert figure("in_use") == 0
    phase = published("loopscope_request_phase_seconds_total", phase="pool_wait")
    assert phase == 0


async def test_a_connection_without_a_pool_ends_however_it_does(postgres: str) -> None:
    """Terminated, lost, or forgotten; one that never was is refused or has timed out."""
    await call(service(nothing))
    terminated, lost, forgotten = [await asyncpg.connect(postgres) for _ in range(3)]
    assert figure("in_use") == 3
    terminated.terminate()
    assert figure("in_use") == 2
    killer = await asyncpg.connect(postgres)
    await killer.execute("select pg_terminate_backend($1)", lost.get_server_pid())
    await killer.close()
    while not lost.is_closed():
        await asyncio.sleep(0.01)
    assert figure("in_use") == 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del forgotten
        gc.collect()
    assert figure("in_use") == 0
    assert figure("use_seconds_count") == 4
    with pytest.raises(OSError):
        await asyncpg.connect("postgresql://somebody:secret@localhost:1/shop")
    assert figure("rejected_total", pool="localhost:1/shop (no pool)") == 1
    with pytest.raises(TimeoutError):
        await asyncpg.connect(postgres, timeout=1e-6)
    assert figure("timeouts_total") == 1


async def test_giving_back_is_no_task_of_the_request(postgres: str) -> None:
    """The pool does it in one of its own; what a callback of the service's makes in there is."""

    async def reset(connection: Any) -> None:
        if is_own:
            await asyncio.create_task(asyncio.sleep(0))

    is_own = False
    pool, app, work = await started(postgres, min_size=1, reset=reset)

    async def use() -> None:
        async with pool.acquire():
            await asyncio.sleep(0)

    work[0] = use
    await call(app, "/work")
    assert published("loopscope_request_tasks_sum", http_route="/work") == 0
    is_own = True
    await call(app, "/work")
    assert published("loopscope_request_tasks_sum", http_route="/work") == 1
    await pool.close()


async def test_stopping_leaves_the_library_as_it_was(postgres: str) -> None:
    """And pools that were measured go on without us."""
    owners = (asyncpg, asyncpg.connection, asyncpg.connect_utils, asyncpg.Connection)
    before = (asyncpg.Pool, asyncpg.pool.Pool, dict(vars(asyncpg.pool.Pool)))
    connecting = [dict(vars(owner)) for owner in owners]
    pool, _, _ = await started(postgres)
    assert type(pool) is asyncpg.Pool
    assert isinstance(pool, before[0])
    stop_agent()
    assert (asyncpg.Pool, asyncpg.pool.Pool) == before[:2]
    assert dict(vars(asyncpg.pool.Pool)) == before[2]
    assert [dict(vars(owner)) for owner in owners] == connecting
    assert asyncpg.pool.PoolConnectionHolder.release.__code__ not in CHORES
    assert await pool.fetchval("select 1") == 1
    await pool.close()
