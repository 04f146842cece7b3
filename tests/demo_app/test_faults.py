"""The shop's faults: each has a switch, and loopscope shows what its docstring says."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from demo_app import faults, switches
from demo_app.routes import faults as routes
from loopscope import Loopscope
from loopscope.agent import current_agent


@pytest.fixture(autouse=True)
def all_off() -> Iterator[None]:
    """No fault stays on."""
    yield
    for name in routes.SWITCHED:
        switches.switch(name, on=False)


def client(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop")


def shop() -> FastAPI:
    app = FastAPI()
    app.include_router(routes.router)
    return app


async def test_faults_are_switched_while_the_shop_runs() -> None:
    """PUT turns a fault on, DELETE off, and GET says which are, with what they show."""
    async with client(shop()) as http:
        listed = (await http.get("/faults")).json()
        assert {fault["name"] for fault in listed} == routes.SWITCHED.keys()
        assert all("Shown: " in fault["what"] for fault in listed)
        assert (await http.put("/faults/search_by_pattern")).json()["on"]
        assert switches.is_on(faults.search_by_pattern)
        assert not (await http.delete("/faults/search_by_pattern")).json()["on"]
        assert not switches.is_on(faults.search_by_pattern)
        assert (await http.put("/faults/no_such_thing")).status_code == 404


@pytest.mark.parametrize(
    ("fault", "causes"),
    [("ask_the_bank_on_the_loop", {"blocking_call"}), ("search_by_pattern", {"cpu"})],
)
async def test_what_holds_the_loop_is_found_by_name(fault: str, causes: set[str]) -> None:
    """A fault that holds the loop is located in its own function, with its cause."""
    app = FastAPI()

    @app.get("/hold")
    async def hold() -> str:
        faults.ask_the_bank_on_the_loop(4)
        faults.search_by_pattern()
        return "held"

    app.add_middleware(Loopscope)
    async with client(app) as http:
        await http.get("/hold")  # starts the agent
        await asyncio.sleep(0.1)
        switches.switch(fault, on=True)
        for _ in range(4):
            await http.get("/hold")
            await asyncio.sleep(0.1)
    agent = current_agent()
    assert agent is not None
    found = [stall for stall in agent.stalls() if stall["cause"] != "starved"]
    if not found:
        pytest.skip("the machine is too busy to tell starvation from anything else")
    assert any(stall["location"].endswith(f" {fault}") for stall in found)
    assert any(stall["cause"] in causes for stall in found)


pytestmark = pytest.mark.anyio
