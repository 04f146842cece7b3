"""What the customers do: every scenario, the route it lands on, and how often it happens."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import httpx
from websockets.asyncio.client import connect

from demo_app.database import ORDERS, PRODUCTS

# The label under which loopscope puts every path no route matches.
UNMATCHED = "_UNMATCHED"
WEBSOCKET = "WS"

_WORDS = ("table", "lamp", "chair", "bowl", "shelf", "clock", "oak", "linen")
_CURRENCIES = ("USD", "GBP", "SEK", "JPY")


class Endpoint(NamedTuple):
    """A method and a route template; the method of a WebSocket is ``WS``."""

    method: str
    route: str


@dataclass(frozen=True)
class Customer:
    """Who runs a scenario: an HTTP client bound to the service, its host, a source of choices."""

    http: httpx.AsyncClient
    websocket_url: str
    choice: random.Random

    def sku(self) -> str:
        """The number of an article the shop carries."""
        return f"sku-{self.choice.randint(1, PRODUCTS):04}"

    def order(self) -> int:
        """The number of an order that has been placed."""
        return self.choice.randint(1, ORDERS)


@dataclass(frozen=True)
class Scenario:
    """Something a customer does once: one request to one route; returns the status it got."""

    endpoint: Endpoint
    weight: int
    act: Callable[[Customer], Awaitable[int]]


async def search(customer: Customer) -> int:
    """Look for a word."""
    query = {"q": customer.choice.choice(_WORDS)}
    return (await customer.http.get("/api/products", params=query)).status_code


async def look(customer: Customer) -> int:
    """Look at an article."""
    return (await customer.http.get(f"/api/products/{customer.sku()}")).status_code


async def look_for_nothing(customer: Customer) -> int:
    """Follow an old link to an article that is gone."""
    return (await customer.http.get("/api/products/sku-gone")).status_code


async def ask_for_offer(customer: Customer) -> int:
    """Ask for a price in another currency."""
    query = {"currency": customer.choice.choice(_CURRENCIES)}
    return (
        await customer.http.get(f"/api/products/{customer.sku()}/offer", params=query)
    ).status_code


async def ask_for_arrival(customer: Customer) -> int:
    """Ask how soon an article could be there."""
    return (await customer.http.get(f"/api/products/{customer.sku()}/arrival")).status_code


async def print_label(customer: Customer) -> int:
    """Print a shelf label."""
    return (await customer.http.get(f"/api/products/{customer.sku()}/label")).status_code


async def place_order(customer: Customer) -> int:
    """Buy one to three articles."""
    lines = [
        {"sku": customer.sku(), "quantity": customer.choice.randint(1, 4)}
        for _ in range(customer.choice.randint(1, 3))
    ]
    body = {"customer": f"customer {customer.choice.randint(1, 500)}", "lines": lines}
    return (await customer.http.post("/api/orders", json=body)).status_code


async def read_order(customer: Customer) -> int:
    """Look at an order."""
    return (await customer.http.get(f"/api/orders/{customer.order()}")).status_code


async def refund(customer: Customer) -> int:
    """Send an order back; the shop fails on some.

    After an exception uvicorn closes the connection without having said so in the response. The
    next request would be lost with it, so this one says beforehand that it is the last.
    """
    path = f"/api/orders/{customer.order()}/refund"
    return (await customer.http.post(path, headers={"Connection": "close"})).status_code


async def read_report(customer: Customer) -> int:
    """Open the sales report."""
    return (await customer.http.get("/api/reports/sales")).status_code


async def export(customer: Customer) -> int:
    """Download the latest order lines."""
    query = {"rows": customer.choice.choice((500, 1_000, 2_000))}
    return (await customer.http.get("/api/reports/orders.csv", params=query)).status_code


async def follow_orders(customer: Customer) -> int:
    """Watch three orders come in, or half a second go by, to the end of the stream."""
    query = {"events": 3, "seconds": 0.5}
    async with customer.http.stream("GET", "/api/live/orders", params=query) as response:
        async for _ in response.aiter_bytes():
            pass
    return response.status_code


async def leave_orders_early(customer: Customer) -> int:
    """Ask for a long stream and leave after its first words."""
    query = {"events": 1_000}
    async with customer.http.stream("GET", "/api/live/orders", params=query) as response:
        async for _ in response.aiter_bytes():
            break
    return response.status_code


async def check_stock(customer: Customer) -> int:
    """Ask for the stock of five articles over one WebSocket."""
    async with connect(f"{customer.websocket_url}/api/live/stock", proxy=None) as socket:
        for _ in range(5):
            await socket.send(customer.sku())
            await socket.recv()
    return 101


async def probe(customer: Customer) -> int:
    """Try a path the shop does not have, each time another one."""
    return (await customer.http.get(f"/old/{customer.choice.getrandbits(32):x}.php")).status_code


SCENARIOS = (
    Scenario(Endpoint("GET", "/api/products"), 18, search),
    Scenario(Endpoint("GET", "/api/products/{sku}"), 26, look),
    Scenario(Endpoint("GET", "/api/products/{sku}"), 2, look_for_nothing),
    Scenario(Endpoint("GET", "/api/products/{sku}/offer"), 10, ask_for_offer),
    Scenario(Endpoint("GET", "/api/products/{sku}/arrival"), 2, ask_for_arrival),
    Scenario(Endpoint("GET", "/api/products/{sku}/label"), 6, print_label),
    Scenario(Endpoint("POST", "/api/orders"), 8, place_order),
    Scenario(Endpoint("GET", "/api/orders/{number}"), 12, read_order),
    Scenario(Endpoint("POST", "/api/orders/{number}/refund"), 3, refund),
    Scenario(Endpoint("GET", "/api/reports/sales"), 6, read_report),
    Scenario(Endpoint("GET", "/api/reports/orders.csv"), 2, export),
    Scenario(Endpoint("GET", "/api/live/orders"), 1, follow_orders),
    Scenario(Endpoint("GET", "/api/live/orders"), 1, leave_orders_early),
    Scenario(Endpoint(WEBSOCKET, "/api/live/stock"), 1, check_stock),
    Scenario(Endpoint("GET", UNMATCHED), 2, probe),
)


def schedule(scenarios: Sequence[Scenario]) -> Iterator[Scenario]:
    """Scenarios for ever, spread evenly: each as often as its weight in every full round.

    Smooth weighted round robin, as nginx does it for its upstreams: everybody earns their weight
    on each turn, the richest goes and pays the sum of all weights.
    """
    total = sum(scenario.weight for scenario in scenarios)
    credit = [0] * len(scenarios)
    while True:
        for index, scenario in enumerate(scenarios):
            credit[index] += scenario.weight
        richest = max(range(len(scenarios)), key=credit.__getitem__)
        credit[richest] -= total
        yield scenarios[richest]
