"""aiomysql's pool, and connections without one, against a real MariaDB."""

from __future__ import annotations

import asyncio
import gc
import inspect
from typing import Any

import aiomysql
import pytest

from loopscope.agent import stop_agent
from loopscope.sources.pools.adapter import making
from tests.harness import published
from tests.servers import Address
from tests.sources.pools.crowd import ROUTE, fifty_of_five, held, site_of, started

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

KIND = "db.aiomysql"
CLASSES = (aiomysql.Pool, aiomysql.Connection)


def parts(address: Address) -> dict[str, Any]:
    """How aiomysql wants to hear of an address."""
    return {
        "host": address.host,
        "port": address.port,
        "user": address.user,
        "password": address.password,
        "db": address.database,
    }


async def a_pool(address: Address, **options: Any) -> Any:
    return await aiomysql.create_pool(**{**parts(address), "minsize": 5, "maxsize": 5, **options})


async def ended(pool: Any) -> None:
    pool.close()
    await pool.wait_closed()


async def test_who_waits_and_who_holds_is_known(mariadb: Address) -> None:
    """50 users of 5 connections: gauges in the middle, waits and uses afterwards, then nothing."""
    service = await started(KIND)
    pool = await a_pool(mariadb)
    await fifty_of_five(service, pool.acquire)
    assert service.figure("create_seconds_count") == 5
    await ended(pool)
    assert service.figure("idle") == 0


async def test_who_gave_up_was_cancelled_and_who_came_too_late_got_an_error(
    mariadb: Address,
) -> None:
    """The pool has no timeout of its own. Nothing is held afterwards, and the pool is whole."""
    service = await started(KIND)
    pool = await a_pool(mariadb, minsize=1, maxsize=1)
    async with pool.acquire():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(pool.acquire(), 0.01)
    assert service.figure("cancelled_total") == 1
    async with pool.acquire() as connection:
        assert service.figure("in_use") == 1
        await connection.ping()
    await ended(pool)
    with pytest.raises(RuntimeError, match="after closing"):
        await pool.acquire()
    assert service.figure("rejected_total") == 1
    assert service.figure("in_use") == service.figure("pending") == 0


async def test_a_pool_without_a_limit_has_no_capacity(mariadb: Address) -> None:
    """It is 0 to aiomysql, which is not what it says."""
    service = await started(KIND)
    pool = await a_pool(mariadb, minsize=1, maxsize=0)
    async with pool.acquire(), pool.acquire(), pool.acquire():
        assert service.figure("in_use") == 3
        assert not service.values("capacity", "pool")
    assert service.figure("idle") == 3
    await ended(pool)


async def test_connections_are_the_pools_also_once_they_are_made_anew(mariadb: Address) -> None:
    """By the line and the request that had them made; none of them is one without a pool."""
    service = await started(KIND)
    pool = await a_pool(mariadb, minsize=0)

    async def work() -> None:
        async with pool.acquire() as connection:
            connection.close()
            await connection.ping(reconnect=True)

    await service.request(work)
    assert service.figure("creations_total", **ROUTE) == service.figure("create_seconds_count") == 2
    lines = [inspect.getsourcelines(work)[1] + after for after in (1, 3)]
    sites = service.values("creations_total", "site")
    assert [f"test_aiomysql.py:{line} " in site for line, site in zip(lines, sites, strict=True)]
    assert not [name for name in service.values("in_use", "pool") if "no pool" in name]
    await ended(pool)


async def test_a_connection_that_breaks_while_in_use_is_given_back(mariadb: Address) -> None:
    """Dead or not, it is no longer in use, and not idle either."""
    service = await started(KIND)
    pool = await a_pool(mariadb, minsize=1)
    async with pool.acquire() as connection:
        connection.close()
    assert service.figure("use_seconds_count") == 1
    assert service.figure("in_use") == service.figure("idle") == 0
    await ended(pool)


async def test_waking_up_who_waits_is_no_task_of_the_request(mariadb: Address) -> None:
    """The pool does it in one of its own, and the request has not asked for that."""
    service = await started(KIND)
    pool = await a_pool(mariadb, minsize=1)

    async def work() -> None:
        async with pool.acquire():
            await asyncio.sleep(0)

    await service.request(work)
    assert published("loopscope_request_tasks_sum", **ROUTE) == 0
    await ended(pool)


async def test_what_is_not_given_back_is_traced_to_its_line(mariadb: Address) -> None:
    """Also after the request that took it has ended."""
    service = await started(KIND)
    pool = await a_pool(mariadb)
    taken: list[Any] = []

    async def work() -> None:
        taken.append(await pool.acquire())

    await service.request(work)
    (use,) = held(KIND)
    assert f"test_aiomysql.py:{inspect.getsourcelines(work)[1] + 1} " in site_of(use)
    pool.release(taken.pop())
    assert not held(KIND)
    await ended(pool)


async def test_a_connection_without_a_pool_is_in_use_until_it_is_closed(mariadb: Address) -> None:
    """It counts as made by the line that connects, each time, and as waited for."""
    service = await started(KIND)

    async def work() -> None:
        async with aiomysql.connect(**parts(mariadb)) as connection:
            (use,) = held(KIND)
            assert f"test_aiomysql.py:{inspect.getsourcelines(work)[1] + 1} " in site_of(use)
            await connection.ping()
        assert not held(KIND)

    await service.request(work)
    await service.request()
    (name,) = service.values("use_seconds_count", "pool")
    assert name == f"{mariadb.host}:{mariadb.port}/{mariadb.database} (no pool)"
    assert service.figure("creations_total", **ROUTE) == 2
    assert service.figure("wait_seconds_count") == service.figure("use_seconds_count") == 2


async def test_a_connection_that_is_lost_is_out_of_use_once_it_is_made_anew(
    mariadb: Address,
) -> None:
    """There are two of them, one after the other, and never two in use."""
    service = await started(KIND)
    connection = await aiomysql.connect(**parts(mariadb))
    connection._writer.transport.abort()  # noqa: SLF001
    await asyncio.sleep(0)
    await connection.ping(reconnect=True)
    assert len(held(KIND)) == 1
    connection.close()
    assert not held(KIND)
    assert service.figure("create_seconds_count") == service.figure("use_seconds_count") == 2


async def test_who_cannot_connect_got_an_error() -> None:
    """And has nothing."""
    service = await started(KIND)
    with pytest.raises(aiomysql.OperationalError):
        await aiomysql.connect(host="127.0.0.1", port=1)
    assert service.figure("rejected_total") == 1
    assert service.figure("in_use") == service.figure("pending") == 0
    assert service.figure("create_seconds_count") == 0


async def test_what_a_pool_of_others_connects_is_not_without_one(mariadb: Address) -> None:
    """SQLAlchemy's, for one, which its own adapter measures."""
    service = await started(KIND)
    with making():
        connection = await aiomysql.connect(**parts(mariadb))
    assert not held(KIND)
    connection.close()
    assert service.figure("create_seconds_count") == 0


async def test_pools_are_named_by_where_they_lead(mariadb: Address) -> None:
    """By host, port and database, without who connects and how."""
    service = await started(KIND)
    pool = await a_pool(mariadb, password="secret", minsize=1)
    other = await a_pool(mariadb, minsize=1)
    names = service.values("capacity", "pool")
    place = f"{mariadb.host}:{mariadb.port}/{mariadb.database}"
    assert names == [place, f"{place} #2"]
    await ended(pool)
    await ended(other)


async def test_a_pool_that_is_dropped_is_gone(mariadb: Address) -> None:
    """Nothing of ours keeps it, nor do its open connections; its gauges go to zero."""
    service = await started(KIND)
    pool = await a_pool(mariadb, minsize=2)
    connections = list(pool._free)  # noqa: SLF001
    assert service.figure("capacity") == 5
    del pool
    gc.collect()
    assert service.figure("capacity") == service.figure("idle") == 0
    for connection in connections:
        connection.close()


async def test_stopping_leaves_the_library_as_it_was(mariadb: Address) -> None:
    """And pools that were measured go on without us."""
    before = [dict(vars(each)) for each in CLASSES]
    await started(KIND)
    assert [dict(vars(each)) for each in CLASSES] != before
    pool = await a_pool(mariadb, minsize=1)
    connection = await pool.acquire()
    stop_agent()
    assert [dict(vars(each)) for each in CLASSES] == before
    pool.release(connection)
    async with pool.acquire() as connection:
        await connection.ping()
    await ended(pool)
