"""SQLAlchemy's engines against a real PostgreSQL, with asyncio and in threads."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import psycopg  # noqa: F401 SQLAlchemy would import it while the loop runs
import pytest
import sqlalchemy
from sqlalchemy import Engine, create_engine, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool, StaticPool

from loopscope.agent import stop_agent
from tests.harness import label_sets
from tests.sources.pools.users import check_crowd, check_crowd_in_threads, started

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

KIND = "db.sqlalchemy"
PATCHED = (
    sqlalchemy.pool.base.Pool,
    sqlalchemy.pool.base._ConnectionFairy,
    sqlalchemy.pool.base._ConnectionRecord,
)


@asynccontextmanager
async def an_engine(
    postgres: str, driver: str = "asyncpg", **options: Any
) -> AsyncIterator[AsyncEngine]:
    """An engine that may have five connections, unless the options say otherwise."""
    url = make_url(postgres).set(drivername=f"postgresql+{driver}")
    sizes = {} if "poolclass" in options else {"pool_size": 5, "max_overflow": 0}
    engine = create_async_engine(url, **{**sizes, **options})
    try:
        yield engine
    finally:
        await engine.dispose()


@contextmanager
def an_engine_for_threads(postgres: str, **options: Any) -> Iterator[Engine]:
    """The same without asyncio."""
    url = make_url(postgres).set(drivername="postgresql+psycopg")
    engine = create_engine(url, **{"pool_size": 5, "max_overflow": 0, **options})
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_who_waits_and_who_holds_is_known(postgres: str, driver: str) -> None:
    """Whatever driver an asyncio engine uses, and although it was made before the agent."""
    async with an_engine(postgres, driver) as engine:
        await check_crowd(await started(KIND), engine.connect)


async def test_who_waits_in_threads_is_known(postgres: str) -> None:
    """Endpoints that run in threads wait there, and their requests are in phase pool_wait."""
    service = await started(KIND)
    with an_engine_for_threads(postgres) as engine:
        await check_crowd_in_threads(service, engine.connect)


async def test_overflow_counts_as_capacity(postgres: str) -> None:
    """And where there is no limit to it, there is no capacity."""
    service = await started(KIND)
    async with (
        an_engine(postgres, pool_size=1, max_overflow=2) as limited,
        an_engine(postgres, pool_size=1, max_overflow=-1) as unlimited,
    ):
        async with limited.connect(), limited.connect():
            assert (service.figure("capacity"), service.figure("in_use")) == (3, 2)
        assert (service.figure("idle"), service.figure("in_use")) == (1, 0)
        async with unlimited.connect():
            assert service.figure("in_use") == 1
            assert service.figure("capacity") == 3


async def test_timeouts_cancellation_and_refusal_are_told_apart(postgres: str) -> None:
    """Who gave up, who was cancelled, and who got an error; none of them holds anything."""
    service = await started(KIND)
    async with an_engine(postgres, pool_size=1, pool_timeout=0.05) as engine, engine.connect():
        with pytest.raises(PoolTimeout):
            await engine.connect().start()
        waiting = asyncio.ensure_future(_connected(engine))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    with (
        an_engine_for_threads("postgresql://localhost:1/nowhere") as nowhere,
        pytest.raises(OperationalError),
    ):
        await asyncio.to_thread(nowhere.connect)
    figure = service.figure
    assert figure("timeouts_total") == figure("cancelled_total") == figure("rejected_total") == 1
    assert figure("in_use") == figure("pending") == 0


async def _connected(engine: AsyncEngine) -> None:
    async with engine.connect():
        pass


async def test_a_connection_is_made_by_a_line_of_the_service(postgres: str) -> None:
    """Found through SQLAlchemy's greenlets; and it is no connection without a pool."""
    service = await started(KIND)
    async with an_engine(postgres) as engine:

        async def helper() -> None:
            async with AsyncSession(engine) as session:
                await session.execute(text("select 1"))
                assert service.places()[0].endswith("helper")

        service.work = helper
        await asyncio.gather(*(service.call() for _ in range(3)))
        function = helper.__qualname__
        assert service.sites() == {("/work", function): 3}
        assert service.figure("create_seconds_count") == 3
        assert service.figure("create_seconds_sum") > 0
        kinds = {each["kind"] for each in label_sets("loopscope_pool_in_use")}
        assert {kind for kind in kinds if kind.startswith("db.")} == {KIND}


async def test_without_pooling_each_use_makes_a_connection(postgres: str) -> None:
    """A NullPool has no capacity; what it costs shows in who makes connections."""
    service = await started(KIND)
    async with an_engine(postgres, poolclass=NullPool) as engine:

        async def use() -> None:
            async with engine.connect():
                assert service.figure("in_use") == 1

        service.work = use
        for _ in range(3):
            await service.call()
        assert service.sites() == {("/work", use.__qualname__): 3}
        assert label_sets("loopscope_pool_capacity", kind=KIND) == []
        assert service.figure("use_seconds_count") == 3
        assert service.figure("in_use") == 0


async def test_what_several_use_at_once_is_no_pool() -> None:
    """A StaticPool, and SQLite in memory: nobody ever waits for them."""
    service = await started(KIND)
    for poolclass in (StaticPool, None):
        engine = create_engine("sqlite://", poolclass=poolclass)
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        engine.dispose()
    assert service.names() == []


async def test_pools_are_named_by_where_they_lead(postgres: str, tmp_path: Path) -> None:
    """By host, port and database or a file's name, without who connects and how."""
    service = await started(KIND)
    there = make_url("postgresql+psycopg://somebody:secret@localhost:1/shop?sslmode=disable")
    engines = [create_engine(url) for url in (there, there, f"sqlite:///{tmp_path}/shop.db")]
    for engine in engines:
        with suppress(OperationalError):
            await asyncio.to_thread(_connected_in_thread, engine)
    assert service.names() == ["localhost:1/shop", "localhost:1/shop #2", "shop.db"]
    for engine in engines:
        engine.dispose()


def _connected_in_thread(engine: Engine) -> None:
    with engine.connect():
        pass


async def test_a_pool_is_measured_on_after_it_was_disposed_of(postgres: str) -> None:
    """The engine has a new one then, by the same name once the old one is gone."""
    service = await started(KIND)
    async with an_engine(postgres) as engine:
        await _connected(engine)
        (name,) = service.names()
        await engine.dispose()
        gc.collect()
        assert service.figure("idle") == 0
        await _connected(engine)
        assert service.figure("use_seconds_count", pool=name) == 2
        assert service.figure("idle", pool=name) == 1


async def test_a_pool_that_is_dropped_is_gone(postgres: str) -> None:
    """Nothing of ours keeps it; its gauges go to zero."""
    service = await started(KIND)
    async with an_engine(postgres) as engine:
        await _connected(engine)
        assert service.figure("capacity") == 5
    del engine
    gc.collect()
    assert service.figure("capacity") == service.figure("idle") == 0


async def test_connections_that_never_come_back_are_not_in_use(postgres: str) -> None:
    """Broken while in use, taken out of the pool, or forgotten and garbage."""
    service = await started(KIND)
    async with an_engine(postgres) as engine:
        async with engine.connect() as connection:
            await connection.invalidate()
            assert service.figure("in_use") == 0
        async with engine.connect() as connection:
            raw = await connection.get_raw_connection()
            assert service.figure("in_use") == 1
            raw.detach()
            assert service.figure("in_use") == 0
        forgotten = await engine.connect().start()
        assert service.figure("in_use") == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            del forgotten
            gc.collect()
        assert service.figure("in_use") == 0
        assert service.figure("use_seconds_count") == 3


async def test_stopping_leaves_the_library_as_it_was(postgres: str) -> None:
    """And engines that were measured go on without us."""
    before = [dict(vars(each)) for each in PATCHED]
    await started(KIND)
    assert [dict(vars(each)) for each in PATCHED] != before
    async with an_engine(postgres) as engine:
        async with engine.connect():
            stop_agent()
        assert [dict(vars(each)) for each in PATCHED] == before
        await _connected(engine)
