"""The shop's PostgreSQL: how to connect, the schema, and the stock it opens with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import asyncpg

if TYPE_CHECKING:
    Pool = asyncpg.Pool[asyncpg.Record]
else:
    Pool = asyncpg.Pool  # generic only in its type stubs

PRODUCTS = 1_000
ORDERS = 4_000

_CLOSE_S = 1.0

_SCHEMA = """
CREATE TABLE products (
    sku         text PRIMARY KEY,
    name        text NOT NULL,
    category    text NOT NULL,
    price_cents integer NOT NULL CHECK (price_cents > 0),
    stock       integer NOT NULL CHECK (stock >= 0)
);
CREATE TABLE orders (
    number    bigserial PRIMARY KEY,
    customer  text NOT NULL,
    status    text NOT NULL DEFAULT 'placed',
    placed_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE order_lines (
    order_number bigint NOT NULL REFERENCES orders,
    sku          text NOT NULL REFERENCES products,
    quantity     integer NOT NULL CHECK (quantity > 0),
    price_cents  integer NOT NULL,
    PRIMARY KEY (order_number, sku)
);
"""

_SEED_PRODUCTS = """
INSERT INTO products
SELECT 'sku-' || lpad(n::text, 4, '0'),
       (ARRAY['oak', 'steel', 'linen', 'glass', 'cork', 'slate'])[1 + n % 6] || ' '
           || (ARRAY['table', 'lamp', 'chair', 'bowl', 'shelf', 'clock', 'tray'])[1 + n % 7]
           || ' no. ' || n,
       (ARRAY['kitchen', 'office', 'garden', 'bedroom'])[1 + n % 4],
       500 + (n * 7919) % 20000,
       1000000
FROM generate_series(1, $1::int) AS n
"""

_SEED_ORDERS = """
INSERT INTO orders (customer, placed_at)
SELECT 'customer ' || n % 500, now() - n * interval '7 minutes'
FROM generate_series(1, $1::int) AS n
"""

_SEED_LINES = """
INSERT INTO order_lines
SELECT o.number, p.sku, 1 + (o.number * line) % 5, p.price_cents
FROM orders o
CROSS JOIN generate_series(1, 3) AS line
JOIN products p ON p.sku = 'sku-' || lpad((1 + (o.number * 31 + line) % $1::int)::text, 4, '0')
"""


@asynccontextmanager
async def connect(dsn: str) -> AsyncIterator[Pool]:
    """A pool of ten connections, closed at the end of the block, whoever still has one."""
    pool = await asyncpg.create_pool(dsn, min_size=2, max_size=10)
    try:
        yield pool
    finally:
        with suppress(TimeoutError):  # when cancelled, asyncpg ends those that were not given back
            async with asyncio.timeout(_CLOSE_S):
                await pool.close()


async def prepare(pool: Pool) -> None:
    """Create the schema and fill it, unless that has been done; all of it or nothing."""
    async with pool.acquire() as connection, connection.transaction():
        if await connection.fetchval("SELECT to_regclass('products') IS NOT NULL"):
            return
        await connection.execute(_SCHEMA)
        await connection.execute(_SEED_PRODUCTS, PRODUCTS)
        await connection.execute(_SEED_ORDERS, ORDERS)
        await connection.execute(_SEED_LINES, PRODUCTS)
