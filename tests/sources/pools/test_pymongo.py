"""pymongo's pools against a double of MongoDB: five connections, more who want one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pymongo
import pytest
from pymongo.asynchronous.pool import Pool as AsyncPool
from pymongo.errors import WaitQueueTimeoutError
from pymongo.synchronous.pool import Pool

from loopscope.agent import stop_agent
from tests.harness import call, published
from tests.sources.pools.http_service import Service, started, until

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

HELD = 0.05
HERE = "tests/sources/pools/test_pymongo.py:"


async def service_here() -> Service:
    return await started("db.mongodb")


@asynccontextmanager
async def client_of(
    mongo: str, connections: int = 5, **options: Any
) -> AsyncIterator[pymongo.AsyncMongoClient[Any]]:
    # Retried reads would each check out a connection more.
    settings = {"maxPoolSize": connections, "maxConnecting": 5, "retryReads": False, **options}
    async with pymongo.AsyncMongoClient[Any](mongo, **settings) as client:
        yield client


async def found(client: pymongo.AsyncMongoClient[Any], seconds: float = 0.0) -> None:
    """Have the server think for so long."""
    await client.test.things.find_one({"delay_s": seconds})


async def test_who_waits_and_who_holds_is_known(mongo: str) -> None:
    """50 users of 5 connections: gauges in the middle, waits and uses afterwards, then nothing."""
    truth: list[float] = []
    service = await service_here()
    async with client_of(mongo) as client:
        await found(client)
        before = service.figure("use_seconds_count"), service.figure("use_seconds_sum")

        async def use() -> None:
            asked = time.perf_counter()
            await found(client, HELD)
            truth.append(time.perf_counter() - asked)

        requests = asyncio.create_task(service.requests(use, 50))
        await until(lambda: len(service.held()) == 5)
        await asyncio.sleep(HELD / 2)
        figure = service.figure
        assert (figure("capacity"), figure("in_use"), figure("idle")) == (5, 5, 0)
        assert figure("pending") >= 30
        assert figure("oldest_wait_seconds") >= HELD / 2
        await requests
        assert (figure("in_use"), figure("pending"), figure("idle")) == (0, 0, 5)
        assert before[0] == 1
        assert figure("wait_seconds_count") == figure("use_seconds_count") == 51
        route = {"http_route": "/work"}
        waits, uses = (figure(f"route_{what}_seconds_total", **route) for what in ("wait", "use"))
        assert waits + uses == pytest.approx(sum(truth), rel=0.05)
        assert waits >= 0.95 * 45 * 5 * HELD
        assert uses >= 50 * HELD
        assert figure("use_seconds_sum") == pytest.approx(uses + before[1])
        phase = published("loopscope_request_phase_seconds_total", phase="pool_wait", **route)
        loop = published("loopscope_request_phase_seconds_total", phase="loop_wait", **route)
        assert phase + loop >= 0.9 * waits
        assert phase > loop


async def test_timeouts_and_cancellation_are_told_apart(mongo: str) -> None:
    """Who gave up and who was cancelled; neither holds anything."""
    service = await service_here()
    async with client_of(mongo, 1, waitQueueTimeoutMS=50) as client:
        held = asyncio.create_task(found(client, 0.3))
        await until(lambda: len(service.held()) == 1)
        waiting = asyncio.create_task(found(client))
        await until(lambda: service.figure("pending") == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(WaitQueueTimeoutError):
            await found(client)
        assert service.figure("timeouts_total") == service.figure("cancelled_total") == 1
        assert (service.figure("in_use"), service.figure("pending")) == (1, 0)
        await held
        await found(client)
        assert service.figure("rejected_total") == 0
        assert service.figure("use_seconds_count") == 2


async def test_a_query_that_is_cancelled_leaves_nothing_in_use(mongo: str) -> None:
    """Its connection is closed, and the next has one made."""
    service = await service_here()
    async with client_of(mongo) as client:
        query = asyncio.create_task(found(client, 5))
        await until(lambda: len(service.held()) == 1)
        query.cancel()
        with pytest.raises(asyncio.CancelledError):
            await query
        assert (service.figure("in_use"), service.figure("idle")) == (0, 0)
        await found(client)
        assert service.figure("create_seconds_count") == 2


async def test_connections_made_are_known_by_route_and_line(mongo: str) -> None:
    """Each is timed, and its maker is who waited for it. Monitors' connections are nobody's."""
    service = await service_here()
    async with client_of(mongo) as client:

        async def helper() -> None:
            await found(client, HELD)

        await service.requests(helper, 3)
    assert service.figure("create_seconds_count") == 3
    assert service.figure("create_seconds_sum") > 0
    (made,) = service.creations()
    assert made["http_route"] == "/work"
    assert made["site"].startswith(HERE)
    assert made["site"].endswith(" found")


async def test_pools_are_named_by_their_server(mongo: str) -> None:
    """Without who connects; one that comes after a closed one has its name."""
    service = await service_here()
    secret = mongo.removeprefix("mongodb://").rstrip("/")
    for _ in range(2):
        async with client_of(mongo, appname="secret") as client:
            await found(client)
            assert service.names() == [secret]
            assert service.figure("capacity") == 5
    async with client_of(mongo) as client, client_of(mongo, 3) as other:
        await found(client)
        await found(other)
        assert service.names() == [secret, f"{secret} #2"]


async def test_a_client_from_before_is_measured(mongo: str) -> None:
    """It need not be made in a service that runs."""
    async with client_of(mongo) as client:
        await found(client)
        service = await service_here()
        await found(client)
        assert service.figure("use_seconds_count") == 1
        assert (service.figure("capacity"), service.figure("idle")) == (5, 1)


async def test_a_client_in_threads_is_measured_as_well(mongo: str) -> None:
    """The same figures, for endpoints that are no coroutines."""
    service = await service_here()
    client: pymongo.MongoClient[Any] = await asyncio.to_thread(
        lambda: pymongo.MongoClient(mongo, maxPoolSize=2)
    )

    def use() -> None:
        client.test.things.find_one({"delay_s": HELD})

    work = asyncio.create_task(service.requests(use, 8, "/thread"))
    await until(lambda: len(service.held()) == 2)
    assert (service.figure("capacity"), service.figure("in_use")) == (2, 2)
    await work
    assert service.figure("wait_seconds_count") == service.figure("use_seconds_count") == 8
    assert service.figure("use_seconds_sum") >= 8 * HELD
    # four rounds of two: those of the second wait for one, and so on
    assert service.figure("wait_seconds_sum") >= 0.9 * (1 + 2 + 3) * 2 * HELD
    assert service.figure("in_use") == service.figure("pending") == 0
    assert {made["http_route"] for made in service.creations()} == {"/thread"}
    await asyncio.to_thread(client.close)
    assert service.figure("capacity") == 0


async def test_stopping_leaves_the_library_as_it_was(mongo: str) -> None:
    """And clients that were measured go on without us."""
    before = dict(vars(AsyncPool)), dict(vars(Pool))
    service = await service_here()
    async with client_of(mongo) as client:
        assert vars(AsyncPool) != before[0]
        query = asyncio.create_task(found(client, HELD))
        await until(lambda: len(service.held()) == 1)
        stop_agent()
        await query
        assert (dict(vars(AsyncPool)), dict(vars(Pool))) == before
        await call(service.app)
        await found(client)
        assert service.figure("use_seconds_count") == 1
