"""Placing, reading and refunding orders."""

from __future__ import annotations

from typing import Annotated

import httpx
from fastapi import APIRouter, BackgroundTasks, HTTPException
from pydantic import BaseModel, Field

from demo_app import faults
from demo_app.feed import Placed
from demo_app.resources import Database, Desk, OrderFeed, Upstream

router = APIRouter(prefix="/api/orders", tags=["orders"])


class Line(BaseModel):
    """So many of one product."""

    sku: str
    quantity: Annotated[int, Field(ge=1, le=100)]


class NewOrder(BaseModel):
    """What a customer sends to buy something."""

    customer: str
    lines: Annotated[list[Line], Field(min_length=1, max_length=50)]
    voucher: Annotated[str, Field(max_length=faults.MOST_VOUCHER)] = ""


class Order(BaseModel):
    """An order as the shop knows it; the total is in euro cents."""

    number: int
    customer: str
    status: str
    total_cents: int


_TAKE_FROM_STOCK = """
UPDATE products SET stock = stock - $2 WHERE sku = $1 AND stock >= $2 RETURNING price_cents
"""
_ONE_ORDER = """
SELECT number, customer, status, sum(quantity * price_cents)::bigint AS total_cents
FROM orders JOIN order_lines ON order_number = number
WHERE number = $1 GROUP BY number
"""


@router.post("", status_code=201)
async def place(
    new: NewOrder,
    database: Database,
    upstream: Upstream,
    feed: OrderFeed,
    background: BackgroundTasks,
) -> Order:
    """Take an order in one transaction, tell the live stream, confirm by mail afterwards."""
    if not faults.accept_voucher(new.voucher):
        raise HTTPException(422, f"no voucher looks like {new.voucher}")
    await faults.connect_for_every_order(new.customer)
    order = await _store(new, database)
    feed.announce(Placed(order.number, order.total_cents))
    background.add_task(_confirm, order, upstream)
    faults.tell_the_warehouse_and_forget(order.number, upstream)
    return order


async def _store(new: NewOrder, database: Database) -> Order:
    async with database.acquire() as connection, connection.transaction():
        number: int = await connection.fetchval(
            "INSERT INTO orders (customer) VALUES ($1) RETURNING number", new.customer
        )
        total = 0
        # Sorted, so that two orders lock the rows they share in the same sequence.
        for sku, quantity in sorted(_quantities(new).items()):
            price = await connection.fetchval(_TAKE_FROM_STOCK, sku, quantity)
            if price is None:
                raise HTTPException(409, f"not enough of {sku} in stock")
            await connection.execute(
                "INSERT INTO order_lines VALUES ($1, $2, $3, $4)", number, sku, quantity, price
            )
            total += price * quantity
    return Order(number=number, customer=new.customer, status="placed", total_cents=total)


def _quantities(new: NewOrder) -> dict[str, int]:
    quantities: dict[str, int] = {}
    for line in new.lines:
        quantities[line.sku] = quantities.get(line.sku, 0) + line.quantity
    return quantities


async def _confirm(order: Order, upstream: httpx.AsyncClient) -> None:
    await upstream.post("/mails", json={"to": order.customer, "about": order.number})


@router.get("/{number}")
async def order(number: int, database: Database, upstream: Upstream, desk: Desk) -> Order:
    """One order; 404 if there is none of that number."""
    await faults.ask_customs_without_a_deadline(number, upstream)
    await faults.ask_carriers_two_at_a_time(desk, upstream)
    row = await database.fetchrow(_ONE_ORDER, number)
    if row is None:
        raise HTTPException(404, f"no order {number}")
    return Order.model_validate(dict(row))


@router.post("/{number}/refund")
async def refund(number: int, database: Database) -> dict[str, int | str]:
    """Give the money back, which fails now and then: ``faults.fail_every_fifth_refund``."""
    faults.fail_every_fifth_refund(number)
    faults.ask_the_bank_on_the_loop(number)
    await faults.return_early_with_a_connection(number, database)
    done = await database.fetchval(
        "UPDATE orders SET status = 'refunded' WHERE number = $1 RETURNING number", number
    )
    if done is None:
        raise HTTPException(404, f"no order {number}")
    return {"number": number, "status": "refunded"}
