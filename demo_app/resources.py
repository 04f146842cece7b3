"""What the routes share: the database pool, the upstream's client, a desk, the feed of orders.

They live as long as the service (``lifespan``); a route asks for the one it needs by its type:
``database: Database``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, TypedDict, cast

import httpx
from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI
from starlette.requests import HTTPConnection

from demo_app import database, faults
from demo_app.feed import Feed
from loopscope import watch_pool

_THREADS = 8  # for plain functions; anyio's 40 are many for a container of one CPU


class Resources(TypedDict):
    """The lifespan state, copied by the server into every request's ``state``."""

    pool: database.Pool
    upstream: httpx.AsyncClient
    desk: asyncio.Semaphore
    feed: Feed


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[Resources]:
    """Open everything, fill the shelves, and close it all again when the service stops."""
    current_default_thread_limiter().total_tokens = _THREADS
    async with (
        database.connect(os.environ["DEMO_DATABASE"]) as pool,
        _upstream_client(os.environ["DEMO_UPSTREAM"]) as upstream,
    ):
        await database.prepare(pool)
        desk = asyncio.Semaphore(faults.DESK)
        watch_pool(faults.DESK_NAME, desk, capacity=faults.DESK)
        yield {"pool": pool, "upstream": upstream, "desk": desk, "feed": Feed()}


def _upstream_client(url: str) -> httpx.AsyncClient:
    # The upstream is on this machine: a proxy set in the environment must not come in between.
    return httpx.AsyncClient(base_url=url, timeout=5.0, trust_env=False)


# Coroutine functions although they await nothing: FastAPI sends a plain function dependency to
# the thread pool, once per request.
async def _pool(connection: HTTPConnection) -> database.Pool:
    return cast("database.Pool", connection.state.pool)


async def _upstream(connection: HTTPConnection) -> httpx.AsyncClient:
    return cast("httpx.AsyncClient", connection.state.upstream)


async def _desk(connection: HTTPConnection) -> asyncio.Semaphore:
    return cast("asyncio.Semaphore", connection.state.desk)


async def _feed(connection: HTTPConnection) -> Feed:
    return cast("Feed", connection.state.feed)


Database = Annotated[database.Pool, Depends(_pool)]
Upstream = Annotated[httpx.AsyncClient, Depends(_upstream)]
Desk = Annotated[asyncio.Semaphore, Depends(_desk)]
OrderFeed = Annotated[Feed, Depends(_feed)]
