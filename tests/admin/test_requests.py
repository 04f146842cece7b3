"""``/api/requests`` and ``/api/awaits``: what is waited for, while it is and afterwards."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.admin.figures import of_worker
from loopscope.admin.listener import AdminListener
from loopscope.admin.requests import listed
from loopscope.agent import Agent, current_agent
from tests.admin.test_listener import get
from tests.harness import call

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

Document = dict[str, Any]


async def waits(request: Request) -> Response:
    await asyncio.sleep(0.3)
    return PlainTextResponse("done")


async def gathers(request: Request) -> Response:
    await asyncio.gather(waits(request), waits(request))
    return PlainTextResponse("done")


async def computes(request: Request) -> Response:
    time.sleep(0.3)  # noqa: ASYNC251  # what it is about
    return PlainTextResponse("done")


async def lingers(request: Request) -> Response:
    return PlainTextResponse("done", background=BackgroundTask(asyncio.sleep, 0.3))


def service(**settings: Any) -> Loopscope:
    routes = [Route(f"/{each.__name__}", each) for each in (waits, gathers, computes, lingers)]
    return Loopscope(Starlette(routes=routes), listen="127.0.0.1:0", **settings)


def asked(path: str) -> Document:
    agent = current_agent()
    assert agent is not None
    assert isinstance(agent._front, AdminListener)
    status, _, body = get(agent._front.url + path)
    assert status == 200
    document: Document = json.loads(body)
    return document


async def seen_during(app: Loopscope, path: str) -> Document:
    """What ``/api/requests`` says of a request in the middle of it."""
    await call(app, "/nothing")
    found: list[Document] = []
    later = threading.Timer(0.15, lambda: found.append(asked("/api/requests")))
    later.start()
    await call(app, path)
    await asyncio.to_thread(later.join)
    (request,) = found[0]["requests"]
    assert found[0]["in_flight"] == 1
    described: Document = request
    return described


async def test_a_waiting_request_says_what_for() -> None:
    """Route, age, phase, and the chain of awaits down to what ends it."""
    request = await seen_during(service(), "/waits")
    assert (request["route"], request["method"], request["phase"]) == (
        "/waits",
        "GET",
        "await_other",
    )
    assert request["awaiting"][-3].startswith("tests/admin/test_requests.py:")
    assert request["awaiting"][-3].endswith(" waits")
    assert request["awaiting"][-2].endswith(" sleep")
    assert request["age_s"] > 0
    assert not request["stuck"]


async def test_tasks_of_a_request_are_listed_with_their_waits() -> None:
    """Of a gather, what each of its tasks waits for."""
    request = await seen_during(service(), "/gathers")
    assert request["awaiting"][-1] == "gather"
    assert request["tasks_alive"] == 2
    assert [task["coroutine"] for task in request["tasks"]] == ["waits", "waits"]
    assert all(task["awaiting"][-2].endswith(" sleep") for task in request["tasks"])


async def test_tasks_are_listed_while_they_come_and_go() -> None:
    """A list that is made while the loop makes tasks and ends them is a list all the same."""
    agents: list[Agent] = []
    failures: list[Exception] = []
    over = threading.Event()

    async def fans_out(scope: Any, receive: Any, send: Any) -> None:
        agents.extend(filter(None, [current_agent()]))
        for _ in range(100):
            await asyncio.gather(*(asyncio.sleep(0) for _ in range(10)))

    def look() -> None:
        while not over.is_set():
            for agent in agents:
                try:
                    listed(agent.live_requests(), agent.users, agent.clock.now(), 60.0, 10)
                except Exception as error:
                    failures.append(error)

    thread = threading.Thread(target=look)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    thread.start()
    try:
        await call(Loopscope(fans_out))
    finally:
        over.set()
        sys.setswitchinterval(before)
        thread.join()
    assert not failures


async def test_a_request_that_holds_the_loop_shows_its_line() -> None:
    """The loop stands still and cannot answer; we can."""
    request = await seen_during(service(), "/computes")
    assert request["phase"] == "loop_run"
    assert any(frame.endswith(" computes") for frame in request["awaiting"])


async def test_a_request_in_background_says_so() -> None:
    """Its response is out, its task goes on."""
    assert (await seen_during(service(), "/lingers"))["phase"] == "background"


async def test_an_old_request_is_stuck() -> None:
    """From the age on that is set."""
    assert (await seen_during(service(stuck_after=0.1), "/waits"))["stuck"]


async def test_waits_are_listed_by_route() -> None:
    """All of them, or one route's."""
    app = service()
    for path in ("/waits", "/gathers"):
        await call(app, path)
    everything = await asyncio.to_thread(asked, "/api/awaits")
    assert {wait["route"] for wait in everything["awaits"]} == {"/waits", "/gathers"}
    (wait,) = (await asyncio.to_thread(asked, "/api/awaits?route=/waits"))["awaits"]
    assert wait["callee"] == "sleep"
    assert wait["count"] == 1
    assert len((await asyncio.to_thread(asked, "/api/awaits?limit=1"))["awaits"]) == 1


async def test_running_and_awaiting_are_in_one_picture() -> None:
    """A flame graph by route, whose seconds are those of the requests."""
    app = service()
    for path in ("/waits", "/computes"):
        await call(app, path)
    await asyncio.sleep(0.2)
    agent = current_agent()
    assert agent is not None
    profile = (await asyncio.to_thread(of_worker(agent).wall_profile, None)).profile
    by_route = {root: 0.0 for root, _, _ in profile.stacks()}
    for root, _, seconds in profile.stacks():
        by_route[root] += seconds
    total = await asyncio.to_thread(totals)
    assert by_route == pytest.approx(total)
    frames = {stack[0]: stack for root, stack, _ in profile.stacks() if root == "/computes"}
    assert frames["[running on the event loop]"]
    document = await asyncio.to_thread(asked, "/api/awaits/profile?format=speedscope&route=/waits")
    assert [each["name"] for each in document["profiles"]] == ["/waits"]


def totals() -> dict[str, float]:
    """Seconds of all requests by route."""
    families = asked("/api/snapshot")["metrics"]
    durations = next(f for f in families if f["name"] == "http_server_request_duration_seconds")
    return {each["labels"]["http_route"]: each["sum"] for each in durations["series"]}


@pytest.mark.parametrize(
    "path", ["/api/requests?limit=no", "/api/awaits?limit=0", "/api/awaits/profile?format=svg"]
)
async def test_bad_parameters_get_a_sentence(path: str) -> None:
    """What is not understood is said."""
    await call(service(), "/nothing")
    agent = current_agent()
    assert agent is not None
    assert isinstance(agent._front, AdminListener)
    ask: Callable[[], Awaitable[Any]] = lambda: asyncio.to_thread(get, agent._front.url + path)  # type: ignore[attr-defined]  # noqa: E731
    status, _, body = await ask()
    assert status == 400
    assert b"allowed" in body
