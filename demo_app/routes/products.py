"""What the shop sells: search, one product, its price abroad, its arrival, its label."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel

from demo_app import faults
from demo_app.resources import Database, Upstream

router = APIRouter(prefix="/api/products", tags=["products"])


class Product(BaseModel):
    """A product; the price is in euro cents."""

    sku: str
    name: str
    category: str
    price_cents: int
    stock: int
    sold: int | None = None


class Offer(BaseModel):
    """A price in the currency the customer asked for."""

    sku: str
    currency: str
    amount: float


class Arrival(BaseModel):
    """How soon a product can be there, in days, and who brings it."""

    sku: str
    carrier: str
    days: int


@router.get("")
async def search(
    database: Database, q: str = "", limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> list[Product]:
    """Products whose name contains ``q``, by name."""
    faults.search_by_pattern()
    faults.restock_in_a_thread()
    rows = await database.fetch(
        "SELECT * FROM products WHERE name ILIKE '%' || $1 || '%' ORDER BY name LIMIT $2", q, limit
    )
    sold = await faults.count_sales_one_by_one([row["sku"] for row in rows], database)
    return [Product.model_validate({**row, "sold": sold.get(row["sku"])}) for row in rows]


@router.get("/{sku}")
async def product(sku: str, database: Database, upstream: Upstream) -> Product:
    """One product; 404 if the shop does not carry it."""
    row = await database.fetchrow("SELECT * FROM products WHERE sku = $1", sku)
    if row is None:
        raise HTTPException(404, f"no product {sku}")
    elsewhere = await faults.ask_the_depot_with_a_connection_in_hand(sku, database, upstream)
    return Product.model_validate({**row, "stock": row["stock"] + elsewhere})


@router.get("/{sku}/offer")
async def offer(sku: str, database: Database, upstream: Upstream, currency: str = "USD") -> Offer:
    """The price in another currency: our database first, then the upstream's exchange rate."""
    cents = await database.fetchval("SELECT price_cents FROM products WHERE sku = $1", sku)
    if cents is None:
        raise HTTPException(404, f"no product {sku}")
    async with faults.make_a_client_per_offer(upstream) as client:
        answer = await client.get(f"/rates/{currency}")
    answer.raise_for_status()
    amount = round(cents / 100 * answer.json()["per_euro"], 2)
    return Offer(sku=sku, currency=currency, amount=amount)


@router.get("/{sku}/arrival")
async def arrival(sku: str, upstream: Upstream) -> Arrival:
    """Which carrier brings it soonest: see ``faults.ask_carriers_one_after_the_other``."""
    days = await faults.ask_carriers_one_after_the_other(upstream)
    carrier = min(days, key=days.__getitem__)
    return Arrival(sku=sku, carrier=carrier, days=days[carrier])


@router.get("/{sku}/label")
def label(sku: str) -> Response:
    """A shelf label. The printer's driver blocks, hence a plain ``def``: it runs in a thread."""
    faults.wait_for_the_printer()
    bars = "".join(
        f'<rect x="{4 * at}" width="{1 + ord(letter) % 3}" height="40"/>'
        for at, letter in enumerate(sku)
    )
    return Response(
        f"<svg xmlns='http://www.w3.org/2000/svg'>{bars}</svg>", 200, None, "image/svg+xml"
    )
