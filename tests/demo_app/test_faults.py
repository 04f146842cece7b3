"""The shop's faults: each has a switch, and loopscope shows what its docstring says."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from demo_app import faults, switches
from demo_app.database import Pool
from demo_app.middleware import Audit
from demo_app.routes import faults as routes
from loopscope import Loopscope
from loopscope.admin.requests import listed
from loopscope.agent import current_agent
from loopscope.sources.awaits import Awaited
from tests.harness import published


@pytest.fixture(autouse=True)
def all_off() -> Iterator[None]:
    """No fault stays on."""
    yield
    for name in faults.SWITCHED:
        switches.switch(name, on=False)


pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

NAP = 0.01


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
        assert {fault["name"] for fault in listed} == faults.SWITCHED.keys()
        assert all("Shown: " in fault["what"] for fault in listed)
        assert (await http.put("/faults/search_by_pattern")).json()["on"]
        assert switches.is_on(faults.search_by_pattern)
        assert not (await http.delete("/faults/search_by_pattern")).json()["on"]
        assert not switches.is_on(faults.search_by_pattern)
        assert (await http.put("/faults/no_such_thing")).status_code == 404


@pytest.mark.parametrize(
    ("fault", "causes"),
    [
        ("ask_the_bank_on_the_loop", {"blocking_call"}),
        ("search_by_pattern", {"cpu"}),
        ("accept_voucher", {"cpu"}),
    ],
)
async def test_what_holds_the_loop_is_found_by_name(fault: str, causes: set[str]) -> None:
    """A fault that holds the loop is located in its own function, with its cause."""
    app = FastAPI()

    @app.get("/hold")
    async def hold() -> str:
        faults.ask_the_bank_on_the_loop(4)
        faults.search_by_pattern()
        faults.accept_voucher("A" * 20 + "!")
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


def test_vouchers_are_judged_alike_by_either_pattern() -> None:
    """The careless pattern is slow, not wrong."""
    codes = {"": True, "AUTUMN-25": True, "A-B-C": True, "autumn": False, "AUTUMN-!": False}
    for on in (False, True):
        switches.switch("accept_voucher", on=on)
        assert {code: faults.accept_voucher(code) for code in codes} == codes


# What stands in for others has no line of its own that waits, else that would be the service's.
def slow(request: httpx.Request) -> Coroutine[None, None, httpx.Response]:
    """Somebody else's service: carriers, customs and mail, all of them slow."""
    return asyncio.sleep(NAP, httpx.Response(200, json={"days": 3}))


def upstream() -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.MockTransport(slow), base_url="http://upstream")


def database() -> Pool:
    """Each query takes 5 ms."""
    return cast("Pool", SimpleNamespace(fetchval=lambda *query: asyncio.sleep(0.005, 1)))


Work = Callable[[], Awaitable[object]]


def working(work: Work) -> FastAPI:
    """A shop with one route, at ``/work``."""
    app = FastAPI()

    @app.get("/work")
    async def endpoint() -> str:
        await work()
        return "done"

    app.add_middleware(Audit)
    app.add_middleware(Loopscope)
    return app


async def ask(work: Work, *, on: str, times: int = 1) -> None:
    """That many requests, the fault ``on``."""
    switches.switch(on, on=True)
    async with client(working(work)) as http:
        for _ in range(times):
            assert (await http.get("/work")).status_code == 200


def waits(function: str) -> list[Awaited]:
    """What the function awaited."""
    agent = current_agent()
    assert agent is not None
    return [wait for wait in agent.awaits.listed() if wait.site.endswith(f" {function}")]


async def test_awaits_one_after_the_other_are_told_as_such() -> None:
    """A gather would save three of the four waits; where the fault is off, it does."""
    name = "ask_carriers_one_after_the_other"
    metric = "loopscope_sequential_await_seconds_total"
    async with upstream() as http:
        work = partial(faults.ask_carriers_one_after_the_other, http)
        async with client(working(work)) as shop_client:
            for _ in range(6):
                await shop_client.get("/work")
        assert published(metric) == 0
        await ask(work, on=name, times=30)
    assert published(metric, location=f"demo_app/faults/waiting.py {name}") >= 30 * 2 * NAP


def stuck_requests() -> list[dict[str, Any]]:
    """Those that have been under way for a tenth of a second."""
    agent = current_agent()
    if agent is None:
        return []
    found = listed(agent.live_requests(), agent.users, agent.clock.now(), 0.1, 10)
    return [each for each in found if each["stuck"]]


async def test_a_request_without_a_deadline_is_seen_stuck() -> None:
    """While it lasts, with the line that waits."""
    name = "ask_customs_without_a_deadline"
    go_on = asyncio.Event()

    async def stuck(request: httpx.Request) -> httpx.Response:
        await go_on.wait()
        return httpx.Response(200)

    transport = httpx.MockTransport(stuck)
    async with httpx.AsyncClient(transport=transport, base_url="http://customs") as http:
        work = partial(faults.ask_customs_without_a_deadline, 50, http)
        asking = asyncio.create_task(ask(work, on=name))
        while not stuck_requests():
            await asyncio.sleep(0.01)
        (found,) = stuck_requests()
        go_on.set()
        await asking
    assert any(frame.endswith(f" {name}") for frame in found["awaiting"])


async def test_a_query_for_every_row_is_as_many_waits() -> None:
    """The line waits once a row, not once a request."""
    skus = [f"sku-{number}" for number in range(20)]
    name = "count_sales_one_by_one"
    work = partial(faults.count_sales_one_by_one, skus, database())
    await ask(work, on=name, times=2)
    assert sum(wait.waits for wait in waits(name)) == 40


async def test_an_unbounded_gather_is_a_fan_out_of_hundreds() -> None:
    """Tasks made for the request, and far more seconds awaited than it took."""
    names = [f"name {number}" for number in range(400)]
    work = partial(faults.count_all_shelves_at_once, names, database())
    await ask(work, on="count_all_shelves_at_once")
    assert published("loopscope_request_tasks_sum") == 300
    assert published("asyncio_tasks_created_total") >= 300
    took = published("http_server_request_duration_seconds_sum")
    assert sum(wait.seconds for wait in waits("_count")) > 10 * took


async def test_a_forgotten_task_outlives_its_request() -> None:
    """It is counted with the route that made it."""

    async def forget() -> None:
        faults.tell_the_warehouse_and_forget(1, http)

    async with upstream() as http:
        await ask(forget, on="tell_the_warehouse_and_forget", times=3)
        assert published("loopscope_request_tasks_outliving_total", http_route="/work") == 3
        await asyncio.sleep(3 * NAP)


async def test_a_slow_middleware_is_named() -> None:
    """One wait a request, in the function that is the middleware."""
    await ask(partial(asyncio.sleep, 0), on="audit_every_request", times=4)
    (wait,) = [each for each in waits("audit_every_request") if each.callee == "sleep"]
    assert wait.waits == 4


async def test_a_slow_printer_uses_up_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who comes when all threads are printing waits for one: as thread_wait, and as a pool."""
    monkeypatch.setattr("demo_app.faults.waiting._PRINTER_S", 2 * NAP)
    monkeypatch.setattr(current_default_thread_limiter(), "total_tokens", 1)
    switches.switch("wait_for_the_printer", on=True)
    app = FastAPI()
    app.get("/label")(faults.wait_for_the_printer)
    app.add_middleware(Loopscope)
    async with client(app) as http:
        await asyncio.gather(*(http.get("/label") for _ in range(3)))
    phase = "loopscope_request_phase_seconds_total"
    assert published(phase, phase="thread_run") >= 3 * 2 * NAP
    assert published(phase, phase="thread_wait") > 0.8 * published(phase, phase="thread_run")
    pool = {"pool": "anyio default", "kind": "threads"}
    assert published("loopscope_pool_capacity", **pool) == 1
    used = published("loopscope_pool_route_use_seconds_total", **pool, http_route="/label")
    assert used >= 3 * 2 * NAP
