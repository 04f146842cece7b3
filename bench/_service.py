"""The service under load: FastAPI and an asyncpg pool, with the agent when `BENCH_AGENT` is 1.

`BENCH_DSN` says where PostgreSQL is, `BENCH_POOL` how many connections to keep.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from fastapi import FastAPI, HTTPException

ROWS = 1000


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Keep the pool for as long as the service runs."""
    size = int(os.environ["BENCH_POOL"])
    async with asyncpg.create_pool(os.environ["BENCH_DSN"], min_size=size, max_size=size) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan, openapi_url=None)


@app.get("/ready")
async def ready() -> dict[str, bool]:
    """Say that the pool is up."""
    return {"ready": True}


@app.get("/items/{item_id}")
async def item(item_id: int) -> dict[str, Any]:
    """Read one row by its key."""
    row = await app.state.pool.fetchrow("SELECT id, name, price FROM item WHERE id = $1", item_id)
    if row is None:
        raise HTTPException(404)
    return dict(row)


if os.environ.get("BENCH_AGENT") == "1":
    from loopscope import Loopscope

    app.add_middleware(Loopscope)
