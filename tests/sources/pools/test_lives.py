"""Pools outlive much: event loops, agents, and the fork of their process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from loopscope import Loopscope, watch_pool
from loopscope.agent import stop_agent
from tests.harness import call, published
from tests.test_fork import hello, in_child, measure

KIND = {"kind": "db.asyncpg"}


def figure(name: str, **labels: str) -> float:
    return published(f"loopscope_pool_{name}", **labels)


def served_by(work: Callable[[], Awaitable[Any]]) -> Loopscope:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await work()
        await hello(scope, receive, send)

    return Loopscope(app)


async def use_a_pool(postgres: str, app: Loopscope) -> None:
    """A life of its own: the pool is made, used once in a request, and closed."""
    await call(app)
    async with asyncpg.create_pool(postgres, min_size=1, max_size=2) as pool:
        await call(served_by(lambda: pool.fetchval("select 1")))
        assert (figure("capacity", **KIND), figure("in_use", **KIND)) == (2, 0)


def test_one_loop_after_the_other_has_pools(postgres: str) -> None:
    """What was used in all of them adds up; what is there is the present one's."""
    app = Loopscope(hello)
    for times in (1, 2, 3):
        asyncio.run(use_a_pool(postgres, app))
        assert figure("use_seconds_count", **KIND) == times


def test_a_pool_outlives_an_agent(postgres: str) -> None:
    """The next one measures it as well, from the beginning."""

    async def both() -> None:
        await call(Loopscope(hello))
        async with asyncpg.create_pool(postgres, min_size=1, max_size=2) as pool:
            async with pool.acquire():
                stop_agent()
            await pool.fetchval("select 1")
            await call(served_by(lambda: pool.fetchval("select 1")))
            assert figure("use_seconds_count", **KIND) == 1
            assert (figure("capacity", **KIND), figure("in_use", **KIND)) == (2, 0)

    asyncio.run(both())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_the_parent_holds_is_not_held_in_a_child() -> None:
    """A forked child has a copy of the pool, and nothing in use of it but what it takes itself."""
    semaphore = asyncio.Semaphore(3)
    watched = watch_pool("licences", semaphore)
    sync = {"kind": "sync"}
    app = Loopscope(hello)

    async def take() -> None:
        await call(app)
        await semaphore.acquire()

    asyncio.run(take())
    assert figure("in_use", **sync) == 1

    def taken_in_child() -> str:
        measure(app)
        before = figure("in_use", **sync)
        asyncio.run(take())
        return f"{before:g} {figure('in_use', **sync):g}"

    assert in_child(taken_in_child) == "1 2"
    assert figure("in_use", **sync) == 1
    watched.unwatch()
