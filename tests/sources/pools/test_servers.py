"""The servers that pools are tested against are there, and let every driver in."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiomysql
import asyncpg
import databases
import psycopg_pool
import pymongo
import pytest
import sqlalchemy
from pymongo.errors import OperationFailure
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import create_async_engine

from tests.servers import Address

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_sqlalchemy_finds_postgres(postgres: str, driver: str) -> None:
    """SQLAlchemy takes the address as it is, once told which driver to use."""
    url = sqlalchemy.make_url(postgres).set(drivername=f"postgresql+{driver}")
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        assert await connection.scalar(sqlalchemy.text("select 1")) == 1
    await engine.dispose()


async def test_psycopg_finds_postgres(postgres: str) -> None:
    """The pool of psycopg takes the address as it is."""
    async with (
        psycopg_pool.AsyncConnectionPool(postgres, min_size=1, open=False) as pool,
        pool.connection() as connection,
    ):
        found = await connection.execute("select 1")
        assert await found.fetchone() == (1,)


async def test_databases_finds_postgres(postgres: str) -> None:
    """``databases`` takes the address as it is."""
    async with databases.Database(postgres) as database:
        assert await database.fetch_val("select 1") == 1


async def test_postgres_is_found_by_its_parts(postgres_parts: Address) -> None:
    """The parts lead to the same server."""
    parts = postgres_parts
    async with asyncpg.create_pool(
        host=parts.host, port=parts.port, user=parts.user, database=parts.database, min_size=1
    ) as pool:
        assert await pool.fetchval("select current_database()") == parts.database


async def test_aiomysql_finds_mariadb(mariadb: Address) -> None:
    """A real MariaDB answers aiomysql, in the database that was promised."""
    async with (
        aiomysql.create_pool(
            host=mariadb.host,
            port=mariadb.port,
            user=mariadb.user,
            password=mariadb.password,
            db=mariadb.database,
        ) as pool,
        pool.acquire() as connection,
        connection.cursor() as cursor,
    ):
        await cursor.execute("select version() like '%MariaDB%', database()")
        assert await cursor.fetchone() == (1, mariadb.database)


async def test_sqlalchemy_finds_mariadb(mariadb: Address) -> None:
    """The address as a URL leads to the same server."""
    engine = create_async_engine(mariadb.url("mysql+aiomysql"))
    async with engine.connect() as connection:
        assert await connection.scalar(sqlalchemy.text("select 1")) == 1
    await engine.dispose()


async def test_redis_remembers(redis: str) -> None:
    """A real Redis answers redis-py."""
    async with Redis.from_url(redis) as client:
        await client.set("key", "value")
        assert await client.get("key") == b"value"


async def test_the_asynchronous_driver_takes_the_double_for_mongodb(mongo: str) -> None:
    """It connects, pings and finds."""
    async with pymongo.AsyncMongoClient[dict[str, int]](mongo) as client:
        assert (await client.admin.command("ping"))["ok"] == 1.0
        assert await client["some"]["thing"].find_one({}) == {"_id": 1}


def test_the_synchronous_driver_takes_the_double_for_mongodb(mongo: str) -> None:
    """It connects, pings and finds."""
    with pymongo.MongoClient[dict[str, int]](mongo) as client:
        assert client.admin.command("ping")["ok"] == 1.0
        assert client["some"]["thing"].find_one({}) == {"_id": 1}


def test_the_double_says_what_it_cannot(mongo: str) -> None:
    """A command it does not know is an error of MongoDB's, not silence."""
    with (
        pymongo.MongoClient[dict[str, int]](mongo) as client,
        pytest.raises(OperationFailure, match="no such command: dropDatabase"),
    ):
        client.drop_database("some")


async def test_the_double_takes_as_long_as_the_query_says(mongo: str) -> None:
    """Of two finds at once the slow one ends last, though asked first."""
    ended: list[float] = []

    async with pymongo.AsyncMongoClient[dict[str, int]](mongo) as client:

        async def find(delay_s: float) -> None:
            await client["some"]["thing"].find_one({"delay_s": delay_s})
            ended.append(delay_s)

        await asyncio.gather(find(0.5), find(0.0))
    assert ended == [0.0, 0.5]


def test_a_killed_test_run_leaves_no_server() -> None:
    """Neither the process nor its directory outlives whoever started it by much."""
    start = (
        "import sys, time; from tests import servers\n"
        "port = servers.free_port()\n"
        "with servers.temporary_directory() as where:\n"
        "    command = [sys.executable, '-m', 'http.server', '--bind', servers.HOST, str(port)]\n"
        "    with servers.running(command, port, where):\n"
        "        print(where, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", start], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        directory = Path(run.stdout.readline().strip())
        assert directory.is_dir()
        os.kill(run.pid, signal.SIGKILL)
    until = time.monotonic() + 30
    while directory.exists():
        assert time.monotonic() < until, "nothing cleared up"
        time.sleep(0.02)
