"""A running service whose requests use a pool, and what has to be true of any pool then."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent
from tests.harness import call, label_sets, published

HELD = 0.05
"""Seconds for which each user of a crowd has what it wanted."""
CAPACITY = 5
CROWD = 50
"""How many want one of those at once."""

Users = Callable[[], AbstractAsyncContextManager[Any]]
UsersInThreads = Callable[[], AbstractContextManager[Any]]


class Service:
    """Does ``work`` for each request to ``/work``, and ``job`` in a thread for ``/threads``."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.work: Callable[[], Awaitable[Any]] = self._nothing
        self.job: Callable[[], Any] = lambda: None
        routes = [Route("/work", self._on_loop), Route("/threads", self._in_thread)]
        self._app = Loopscope(Starlette(routes=routes))

    async def call(self, path: str = "/work") -> None:
        """One request."""
        await call(self._app, path)

    def figure(self, name: str, **labels: str) -> float:
        """What is published of all pools of this kind, or of those with such labels."""
        return published(f"loopscope_pool_{name}", **{"kind": self.kind, **labels})

    def names(self) -> list[str]:
        """What pools of this kind go by."""
        found = label_sets("loopscope_pool_in_use")
        return sorted(each["pool"] for each in found if each["kind"] == self.kind)

    def sites(self) -> dict[tuple[str, str], float]:
        """How many connections were made for each route, by each function of the service's."""
        return {
            (each["http_route"], each["site"].rpartition(" ")[2]): self.figure(
                "creations_total", **each
            )
            for each in label_sets("loopscope_pool_creations_total")
            if each["kind"] == self.kind
        }

    def places(self) -> list[str]:
        """The functions that have something in use, longest first."""
        agent = current_agent()
        assert agent is not None
        held = agent.pools.book.held()
        return [agent.pools.book.users.describe_place(use.place).rpartition(" ")[2] for use in held]

    async def _nothing(self) -> None:
        """What the first request does."""

    async def _on_loop(self, request: Request) -> Response:
        await self.work()
        return PlainTextResponse("done")

    def _in_thread(self, request: Request) -> Response:
        self.job()
        return PlainTextResponse("done")


async def started(kind: str) -> Service:
    """A service that has had its first request, so that the agent is there."""
    service = Service(kind)
    await service.call()
    return service


async def check_crowd(service: Service, users: Users) -> None:
    """50 users of 5: gauges in the middle, waits and uses afterwards, then nothing.

    ``users`` gives what waits when it is entered, and gives back when it is left.
    """
    truth = {"wait": 0.0, "use": 0.0, "giving back": 0.0}

    async def use() -> None:
        asked = time.perf_counter()
        async with users():
            got = time.perf_counter()
            await asyncio.sleep(HELD)
            done = time.perf_counter()
        truth["wait"] += got - asked
        truth["use"] += done - got
        truth["giving back"] += time.perf_counter() - done

    await asyncio.gather(*(use() for _ in range(CAPACITY)))  # connects
    service.work = use
    await _check_crowd(service, "/work", truth)


async def check_crowd_in_threads(service: Service, users: UsersInThreads) -> None:
    """The same in threads, where a request can do nothing but wait."""
    truth = {"wait": 0.0, "use": 0.0, "giving back": 0.0}

    def use() -> None:
        asked = time.perf_counter()
        with users():
            got = time.perf_counter()
            time.sleep(HELD)
            done = time.perf_counter()
        truth["wait"] += got - asked
        truth["use"] += done - got
        truth["giving back"] += time.perf_counter() - done

    await asyncio.gather(*(asyncio.to_thread(use) for _ in range(CAPACITY)))
    service.job = use
    await _check_crowd(service, "/threads", truth, crowd=40)


async def _check_crowd(
    service: Service, path: str, truth: dict[str, float], crowd: int = CROWD
) -> None:
    figure = service.figure
    counted = figure("use_seconds_count")
    requests = [asyncio.create_task(service.call(path)) for _ in range(crowd)]
    while not _is_crowded(service):  # not here yet, or one is just given to the next
        await asyncio.sleep(HELD / 10)
        assert not all(request.done() for request in requests)
    assert figure("capacity") == CAPACITY
    await asyncio.gather(*requests)
    assert (figure("in_use"), figure("pending"), figure("idle")) == (0, 0, CAPACITY)
    assert figure("wait_seconds_count") == figure("use_seconds_count") == counted + crowd
    assert figure("wait_seconds_sum") == pytest.approx(truth["wait"], rel=0.05)
    longest_use = truth["use"] + truth["giving back"]  # it is given back somewhere in there
    assert 0.95 * truth["use"] <= figure("use_seconds_sum") <= 1.05 * longest_use
    route = {"http_route": path}
    outside = {"http_route": ""}
    for sums in ("route_wait_seconds_total", "route_use_seconds_total"):
        whole = figure(sums.removeprefix("route_").replace("_total", "_sum"))
        assert figure(sums, **route) + figure(sums, **outside) == pytest.approx(whole)
    waited = figure("route_wait_seconds_total", **route)
    phase = published("loopscope_request_phase_seconds_total", phase="pool_wait", **route)
    loop = published("loopscope_request_phase_seconds_total", phase="loop_wait", **route)
    assert phase + loop >= 0.95 * waited
    assert phase > 0


def _is_crowded(service: Service) -> bool:
    """Whether all are in use, and as many wait, one of them for as long as others use theirs."""
    return (
        service.figure("in_use") == CAPACITY
        and service.figure("idle") == 0
        and service.figure("pending") >= CAPACITY
        and service.figure("oldest_wait_seconds") >= HELD
    )
