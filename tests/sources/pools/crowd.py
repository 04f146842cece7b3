"""A service whose endpoints use a pool, and what fifty users of five connections come to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.sources.pools.use import Use
from tests.harness import call, label_sets, published

Work = Callable[[], Awaitable[object]]
Borrow = Callable[[], AbstractAsyncContextManager[object]]

ROUTE = {"http_route": "/work"}
HELD = 0.05
"""Seconds, to which what a busy machine adds is little."""


async def nothing() -> None:
    """What the first request does, so that the agent is there before the pool."""


class Service:
    """One that runs, with an agent. Its ``/work`` does ``work``; ``kind`` is whose figures."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.work: Work = nothing
        self.app = Loopscope(Starlette(routes=[Route("/work", self._endpoint)]))

    async def _endpoint(self, request: Request) -> Response:
        await self.work()
        return PlainTextResponse("done")

    async def request(self, work: Work | None = None) -> None:
        """One request, which does ``work`` (and so does every one after it)."""
        self.work = work or self.work
        await call(self.app, "/work")

    def figure(self, name: str, **labels: str) -> float:
        """``loopscope_pool_NAME`` of all pools of this kind, added up."""
        return published(f"loopscope_pool_{name}", kind=self.kind, **labels)

    def values(self, name: str, label: str) -> list[str]:
        """What ``label`` has been in ``loopscope_pool_NAME``, for pools of this kind."""
        found = label_sets(f"loopscope_pool_{name}")
        return sorted(each[label] for each in found if each["kind"] == self.kind)


async def started(kind: str) -> Service:
    """A service that has served its first request."""
    service = Service(kind)
    await service.request()
    return service


def held(kind: str) -> list[Use]:
    """What is in use of pools of ``kind``, longest first."""
    agent = current_agent()
    assert agent is not None
    return [use for use in agent.pools.book.held() if use.meter.labels[1] == kind]


def site_of(use: Use) -> str:
    """The line that asked."""
    return use.meter.book.users.describe_place(use.place)


async def fifty_of_five(service: Service, borrow: Borrow) -> None:
    """Fifty requests that each ``borrow`` from a pool of five: what is published must be true."""
    truth = {"wait": 0.0, "use": 0.0, "giving back": 0.0}
    looked = asyncio.Event()

    async def use() -> None:
        asked = time.perf_counter()
        async with borrow():
            got = time.perf_counter()
            await looked.wait()
            await asyncio.sleep(HELD)
            done = time.perf_counter()
        truth["wait"] += got - asked
        truth["use"] += done - got
        truth["giving back"] += time.perf_counter() - done

    service.work = use
    requests = [asyncio.create_task(service.request()) for _ in range(50)]
    while len(held(service.kind)) < 5:
        await asyncio.sleep(0.01)
    await asyncio.sleep(HELD)
    figure = service.figure
    gauges = ("capacity", "in_use", "idle", "pending")
    try:
        assert tuple(map(figure, gauges)) == (5, 5, 0, 45)
        assert min(figure("oldest_wait_seconds"), figure("oldest_use_seconds")) >= HELD
    finally:
        looked.set()
        await asyncio.gather(*requests)
    assert tuple(map(figure, gauges)) == (5, 0, 5, 0)
    assert figure("wait_seconds_count") == figure("use_seconds_count") == 50
    assert figure("wait_seconds_sum") == pytest.approx(truth["wait"], rel=0.05)
    longest_use = truth["use"] + truth["giving back"]  # before it is, asyncpg asks its server
    assert 0.95 * truth["use"] <= figure("use_seconds_sum") <= 1.05 * longest_use
    for name in ("wait", "use"):
        by_route = figure(f"route_{name}_seconds_total", **ROUTE)
        assert by_route == pytest.approx(figure(f"{name}_seconds_sum"))
    phases = {
        phase: published("loopscope_request_phase_seconds_total", phase=phase, **ROUTE)
        for phase in ("pool_wait", "loop_wait")
    }
    assert sum(phases.values()) >= 0.95 * truth["wait"]
    assert phases["pool_wait"] > 0
