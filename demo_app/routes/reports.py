"""Reports: one rendered on the event loop, one streamed row by row."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, StreamingResponse

from demo_app import faults
from demo_app.resources import Database

router = APIRouter(prefix="/api/reports", tags=["reports"])

_SALES = """
SELECT category, name, sum(quantity * order_lines.price_cents)::bigint AS cents
FROM order_lines JOIN products USING (sku) GROUP BY category, name
"""
_EXPORT = """
SELECT number, customer, sku, quantity, price_cents
FROM orders JOIN order_lines ON order_number = number ORDER BY number DESC, sku LIMIT $1
"""
_ROWS_A_CHUNK = 100


@router.get("/sales")
async def sales(database: Database) -> HTMLResponse:
    """What sold how well, as a page: see ``faults.render_on_the_loop``."""
    rows = await database.fetch(_SALES)
    await faults.count_all_shelves_at_once([row["name"] for row in rows], database)
    return HTMLResponse(faults.render_on_the_loop(faults.Sale(*row) for row in rows))


@router.get("/orders.csv")
async def orders_csv(
    database: Database, rows: Annotated[int, Query(ge=1, le=10_000)] = 1_000
) -> StreamingResponse:
    """The latest order lines as CSV, sent while they are being read."""
    return StreamingResponse(_csv(database, rows), media_type="text/csv")


async def _csv(database: Database, rows: int) -> AsyncIterator[str]:
    yield "number,customer,sku,quantity,price_cents\n"
    async with database.acquire() as connection, connection.transaction():
        cursor = await connection.cursor(_EXPORT, rows)
        while chunk := await cursor.fetch(_ROWS_A_CHUNK):
            yield "".join(",".join(map(str, row.values())) + "\n" for row in chunk)
