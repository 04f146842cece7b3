"""The shop's faults that are about pools, in the real shop: what loopscope shows of each."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from demo_app import faults, figures, measure, pools, stack
from demo_app.figures import RouteFigures
from demo_app.pools import PoolFigures
from demo_app.scrape import between
from demo_app.seen import Seen
from demo_app.stack import Stack
from tests import servers

_PATIENCE_S = 20.0
ORDERS = 4
SEARCHES = 4
AT_THE_DESK = 8
_SEARCH = "/api/products"
"""Asks the database once, and computes next to nothing: what it takes is what it waits for."""
_ORDER = {"customer": "customer 1", "lines": [{"sku": "sku-0001", "quantity": 1}]}


@dataclass(frozen=True)
class Shop:
    """What was seen of a shop with all these faults, and of its pools."""

    seen: Seen
    pools: list[PoolFigures]

    def pool(self, name: str) -> PoolFigures:
        """The pool of that name."""
        (found,) = [pool for pool in self.pools if pool.id.pool == name]
        return found

    @property
    def remarks(self) -> list[str]:
        """What the report says."""
        seen = self.seen
        return list(pools.remarks(self.pools, seen.window, seen.figures, seen.pools))


@pytest.fixture(scope="module")
def shop() -> Shop:
    """The shop, visited once for all tests here: starting it takes longer than they do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEMO_FAULTS", "")
        seen = asyncio.run(_visited())
    return Shop(seen, pools.read(seen.window, seen.pools))


async def _visited() -> Seen:
    async with stack.everything(lambda _: None, servers.free_port()) as running:
        before = await measure.scrape_when_calm(running.admin_url)
        async with httpx.AsyncClient(base_url=running.service_url, trust_env=False) as http:
            await _lose_connections(http)
            await _place_orders(http)
            await _ask_for_offers(http)
            await _queue_for_the_desk(http)
            await _wait_for_the_depot(http, running)
        await _until_missed(running)
        window = between(before, await measure.scrape_when_calm(running.admin_url))
        return Seen(window, figures.read(window), (), pools=await measure.pools(running.admin_url))


async def _switch(http: httpx.AsyncClient, fault: str, *, on: bool = True) -> None:
    (await http.request("PUT" if on else "DELETE", f"/faults/{fault}")).raise_for_status()


async def _lose_connections(http: httpx.AsyncClient) -> None:
    await _switch(http, faults.return_early_with_a_connection.__name__)
    for number in (1, 2, 3, 4, 6, 7):  # not the fifth, which fails before
        (await http.post(f"/api/orders/{number}/refund")).raise_for_status()


async def _place_orders(http: httpx.AsyncClient) -> None:
    await _switch(http, faults.connect_for_every_order.__name__)
    for _ in range(ORDERS):
        (await http.post("/api/orders", json=_ORDER)).raise_for_status()


async def _ask_for_offers(http: httpx.AsyncClient) -> None:
    await _switch(http, faults.make_a_client_per_offer.__name__)
    for _ in range(4):
        (await http.get("/api/products/sku-0001/offer")).raise_for_status()


async def _queue_for_the_desk(http: httpx.AsyncClient) -> None:
    fault = faults.ask_carriers_two_at_a_time.__name__
    await _switch(http, fault)
    await asyncio.gather(*(http.get(f"/api/orders/{number}") for number in range(AT_THE_DESK)))
    await _switch(http, fault, on=False)


async def _wait_for_the_depot(http: httpx.AsyncClient, running: Stack) -> None:
    """Thirty ask, over and over, for what takes a connection a quarter of a second; one searches.

    More than once: asyncpg's pool hands over by an ``asyncio.Queue``, where who comes in the very
    iteration in which a connection is given back is served before those who wait.
    """
    await _switch(http, faults.ask_the_depot_with_a_connection_in_hand.__name__)
    served = asyncio.Event()

    async def ask_until_served() -> None:
        while not served.is_set():
            (await http.get("/api/products/sku-0001")).raise_for_status()

    others = [asyncio.create_task(ask_until_served()) for _ in range(30)]
    while not any(map(_is_full, await measure.pools(running.admin_url))):
        assert not all(each.done() for each in others), "nobody had to wait"
    for _ in range(SEARCHES):
        (await http.get(f"{_SEARCH}?limit=1")).raise_for_status()
    served.set()
    await asyncio.gather(*others)


def _is_full(pool: Mapping[str, Any]) -> bool:
    """Whether whoever comes now waits for some rounds, and not for the end of one."""
    is_ours: bool = pool["kind"] == "db.asyncpg"
    return is_ours and pool["pending"] >= 2 * pool["in_use"] > 0


async def _until_missed(running: Stack) -> None:
    """A connection is missed only some time after its request has ended."""
    deadline = time.monotonic() + _PATIENCE_S
    while time.monotonic() < deadline:
        held = [use for pool in await measure.pools(running.admin_url) for use in pool["held"]]
        if held and all(use["leaked"] for use in held):
            return
        await asyncio.sleep(0.2)


def _of(shop: Shop, route: str) -> RouteFigures:
    (found,) = [each for each in shop.seen.figures.routes if each.endpoint.route == route]
    return found


def test_connections_held_for_too_long_make_others_wait(shop: Shop) -> None:
    """A query that has nothing to do with it waits for the pool for longer than it takes."""
    pool = shop.pool("postgres")
    waiter = _of(shop, _SEARCH)
    assert pool.used["/api/products/{sku}"] > 10 * pool.used[waiter.endpoint.route]
    assert max(waiter.phases, key=waiter.phases.__getitem__) == "pool_wait"
    waited = pool.waited[waiter.endpoint.route]
    assert waiter.phases["pool_wait"] <= 1.1 * waited
    assert waiter.phases["pool_wait"] + waiter.phases["loop_wait"] >= 0.9 * waited


def test_connections_not_given_back_are_missed(shop: Shop) -> None:
    """All of them, with the line that took them, and no others."""
    assert shop.pool("postgres").leaked == faults.MOST_LOST
    (said,) = [remark for remark in shop.remarks if "not given back" in remark]
    assert said.startswith(f"postgres: {faults.MOST_LOST} not given back, taken at demo_app/faults")
    assert "return_early_with_a_connection (/api/orders/{number}/refund)" in said


def test_connections_without_a_pool_are_as_many_as_requests(shop: Shop) -> None:
    """They are a pool of their own, and the line that connects is named."""
    pool = shop.pool("postgres (no pool)")
    assert (pool.made, pool.wait.count, pool.capacity) == (ORDERS, ORDERS, None)
    (said,) = [remark for remark in shop.remarks if "connect_for_every_order" in remark]
    assert said.startswith("POST /api/orders opens a connection per request (1.0) at ")


def test_a_client_for_a_request_is_a_connection_for_a_request(shop: Shop) -> None:
    """None is there to be used again; the line that asks has it made."""
    (said,) = [remark for remark in shop.remarks if "/offer opens" in remark]
    assert said.startswith(
        "GET /api/products/{sku}/offer opens a connection per request (1.0) "
        "at demo_app/routes/products.py"
    )


def test_a_semaphore_of_the_shops_own_is_a_pool(shop: Shop) -> None:
    """Who queues for it waits for a pool, which is never more than full."""
    pool = shop.pool(faults.DESK_NAME)
    assert (pool.id.kind, pool.capacity, pool.wait.count) == ("sync", faults.DESK, AT_THE_DESK)
    assert _of(shop, "/api/orders/{number}").phases["pool_wait"] == pytest.approx(
        sum(pool.waited.values()), rel=0.2
    )
