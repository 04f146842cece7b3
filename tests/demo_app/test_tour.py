"""The tour: a real shop that stands still, its sentinel, and what is printed about it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import httpx
import pytest

from demo_app.child import running
from demo_app.freezes import Freeze, watched
from demo_app.tour import STOPS, freezes
from tests.e2e.running import PATIENCE, eventually, free_port

pytestmark = pytest.mark.real_time

VOUCHER, RESTOCK = STOPS
SOONER = replace(VOUCHER, body={"voucher": "A" * 23 + "!"})
"""Over in half the time."""


def is_taken(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


async def stopped(port: int, environment: dict[str, str]) -> list[Freeze]:
    """What the tour sees of a shop whose figures are on ``port``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        number = listener.fileno()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        admin_url = f"http://127.0.0.1:{port}"
        async with running(
            "the shop",
            "demo_app.worker",
            "tests.demo_app.frozen_shop:app",
            str(number),
            environment={"LOOPSCOPE_LISTEN": f"127.0.0.1:{port}", **environment},
            descriptors=[number],
        ) as shop:
            async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as client:
                await client.get("/api/products")  # starts the agent
            assert await asyncio.to_thread(eventually, lambda: is_taken(port) or shop.ended)
            await asyncio.sleep(1.5)  # until the routes are written down
            return await freezes(url, admin_url, (SOONER, RESTOCK))


def test_a_shop_that_stands_still_is_told_of_while_it_does() -> None:
    """By its function and route, or by the thread that keeps the interpreter; then all is over."""
    port = free_port()
    found = asyncio.run(stopped(port, {"LOOPSCOPE_SENTINEL": "1"}))
    seen = [stall for each in found for stall in (each.meanwhile, each.afterwards) if stall]
    if any("refused" in stall["evidence"] for stall in seen):
        pytest.skip("processes may not look into each other here")
    (voucher_told, (_, voucher)), (_, (_, restock)) = watched(found)
    assert voucher_told
    assert "Seen from outside while it lasted: cpu at demo_app/faults/frozen.py" in voucher
    assert "accept_voucher (/api/orders)" in voucher
    assert "thread restock had the interpreter, at demo_app/faults/frozen.py" in restock
    assert eventually(lambda: not is_taken(port))


def test_without_a_sentinel_nobody_can_tell() -> None:
    """The tour goes to its end all the same, and says that nothing was seen from outside."""
    found = asyncio.run(stopped(free_port(), {"LOOPSCOPE_SENTINEL": "0"}))
    for _, (_, outside) in watched(found):
        assert outside == "Not seen from outside."
