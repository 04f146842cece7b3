"""``/api/stalls`` over real sockets."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.admin.listener import AdminListener
from loopscope.agent import current_agent, stop_agent
from tests.admin.test_listener import get
from tests.harness import call

pytestmark = pytest.mark.real_time

LENGTHS = (0.1, 0.3, 0.2)


async def held(request: Request) -> PlainTextResponse:
    time.sleep(float(request.path_params["seconds"]))  # noqa: ASYNC251  # what it is about
    return PlainTextResponse("held")


async def hold(*lengths: float) -> None:
    """Requests that hold the loop for so many seconds each, one after the other."""
    app = Loopscope(Starlette(routes=[Route("/held/{seconds}", held)]), listen="127.0.0.1:0")
    await call(app, "/held/0")
    for seconds in lengths:
        await asyncio.sleep(0.1)
        await call(app, f"/held/{seconds}")
    await asyncio.sleep(0.1)


def listener() -> str:
    """The address of the running agent."""
    agent = current_agent()
    assert agent is not None
    assert isinstance(agent._front, AdminListener)
    return agent._front.url


@pytest.fixture
def url() -> Iterator[str]:
    """The listener of an agent that has seen three stalls."""
    asyncio.run(hold(*LENGTHS))
    yield listener()
    stop_agent()


def every_stall(url: str) -> list[dict[str, Any]]:
    status, _, body = get(url)
    assert status == 200
    found: list[dict[str, Any]] = json.loads(body)["stalls"]
    return found


def stalls(url: str) -> list[dict[str, Any]]:
    """Those of our requests: a busy machine may hold the loop as well."""
    return [stall for stall in every_stall(url) if stall["route"] == "/held/{seconds}"]


def test_the_newest_come_first_unless_asked_otherwise(url: str) -> None:
    """Order and number are the reader's to choose."""
    durations = [stall["duration_s"] for stall in stalls(url + "/api/stalls")]
    middle, longest, shortest = durations
    assert shortest < middle < longest
    found = stalls(url + "/api/stalls?sort=longest&limit=2")
    assert [stall["duration_s"] for stall in found] == [longest, middle]


def test_a_stall_has_every_key_of_the_contract(url: str) -> None:
    """The JSON is a contract: keys are added, never taken away."""
    assert stalls(url + "/api/stalls")[0].keys() >= {
        "id", "started_at", "duration_s", "cause", "location", "leaf", "route", "method", "task",
        "trace_id", "worker", "victims", "stacks",
    }  # fmt: skip


def test_stalls_can_be_grouped_by_location(url: str) -> None:
    """One entry a place, the costliest first."""
    _, _, body = get(url + "/api/stalls?group=location")
    group = json.loads(body)["groups"][0]
    assert group["location"].endswith(" held")
    assert group["stalls"] >= 3
    assert group["seconds"] >= 0.9 * sum(LENGTHS)
    assert group["routes"] == ["/held/{seconds}"]


def test_blocking_time_can_be_downloaded_as_a_profile(url: str) -> None:
    """Folded stacks and speedscope's format, of the time the loop was held and no other."""
    status, headers, body = get(url + "/api/stalls/profile")
    assert status == 200
    assert "blocking.folded" in headers["content-disposition"]
    microseconds = sum(int(line.rpartition(" ")[2]) for line in body.decode().splitlines())
    held_for = sum(stall["duration_s"] for stall in every_stall(url + "/api/stalls"))
    assert 0.9 * sum(LENGTHS) <= microseconds / 1e6 <= 1.01 * held_for
    _, _, body = get(url + "/api/stalls/profile?format=speedscope")
    assert json.loads(body)["profiles"]


@pytest.mark.parametrize(
    "query", ["sort=best", "limit=0", "limit=x", "limit=1001", "group=route", "limit=²"]
)
def test_a_bad_parameter_is_answered_with_a_sentence(query: str) -> None:
    """What is not understood is said, with what is allowed."""
    asyncio.run(hold())
    status, _, body = get(f"{listener()}/api/stalls?{query.replace('²', '%C2%B2')}")
    assert status == 400
    assert b"allowed: " in body
