"""What wears out pools, goes round them, or does not give back what it took."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count

import asyncpg
import httpx

from demo_app import switches
from demo_app.database import Pool

MOST_LOST = 3
"""Connections that are never given back; a shop that loses all of them would serve nobody."""
DESK = 2
"""How many may ask a carrier at one time."""
DESK_NAME = "carriers' desk"

_STOCK = "SELECT stock FROM products WHERE sku = $1"
_SPENT = "SELECT count(*) FROM orders WHERE customer = $1"
_STATUS = "SELECT status FROM orders WHERE number = $1"

_lost = count(1)


async def connect_for_every_order(customer: str) -> None:
    """Connect to the database in the handler, although there is a pool: some 10 ms an order.

    Only where ``switches`` has it on. Shown: a pool of its own, ``... (no pool)``, with a use and
    a connection made (``loopscope_pool_creations_total``, with this line) for each request of the
    route. The database sees the same: a process that starts and ends, for each order.
    """
    if not switches.is_on(connect_for_every_order):
        return
    connection = await asyncpg.connect(os.environ["DEMO_DATABASE"])
    try:
        await connection.fetchval(_SPENT, customer)
    finally:
        await connection.close()


async def ask_the_depot_with_a_connection_in_hand(
    sku: str, database: Pool, upstream: httpx.AsyncClient
) -> int:
    """Hold a connection for a query of 1 ms, and for a quarter of a second of somebody else's.

    Only where ``switches`` has it on. Shown: a pool that is full on average, by use of this route;
    and ``pool_wait`` in all the others, which are not to blame. To ask after the block would do.
    """
    if not switches.is_on(ask_the_depot_with_a_connection_in_hand):
        return 0
    async with database.acquire() as connection:
        await connection.fetchval(_STOCK, sku)
        answer = await upstream.get(f"/depots/{sku}")
    stock: int = answer.json()["stock"]
    return stock


async def return_early_with_a_connection(number: int, database: Pool) -> None:
    """Take a connection, and on one way out forget to give it back: three times at most.

    Only where ``switches`` has it on. Shown: ``loopscope_pool_leaked`` with ``request_ended``, a
    line in the log, and at ``/api/pools`` this line and for how long it has been held. The pool
    would be smaller by each, until nobody gets any; ``async with`` has no such way out.
    """
    if not switches.is_on(return_early_with_a_connection):
        return
    connection = await database.acquire()
    status = await connection.fetchval(_STATUS, number)
    if status is not None and next(_lost) <= MOST_LOST:
        return
    await database.release(connection)


@asynccontextmanager
async def make_a_client_per_offer(
    upstream: httpx.AsyncClient,
) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client for one request, with a pool of its own: none is there to be used again.

    Only where ``switches`` has it on; else the one that all share. Shown: a connection made
    (``loopscope_pool_creations_total``) for each request of the route, with the line that asks the
    client for something; and the event loop held, as each client loads all certificates anew.
    """
    if not switches.is_on(make_a_client_per_offer):
        yield upstream
        return
    async with httpx.AsyncClient(base_url=upstream.base_url, trust_env=False) as client:
        yield client


async def ask_carriers_two_at_a_time(desk: asyncio.Semaphore, upstream: httpx.AsyncClient) -> None:
    """A semaphore of the shop's own, meant to be kind to the carriers, and too small.

    Only where ``switches`` has it on. Shown: as ``loopscope.watch_pool`` was told of it, a pool of
    kind ``sync`` that is nearly always full, and ``pool_wait`` of those who queue for it.
    """
    if switches.is_on(ask_carriers_two_at_a_time):
        async with desk:
            await upstream.get("/carriers/alder")
