"""Event loops come and go, also several in one thread, one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from tests.harness import call, published

LOOPS: list[Callable[[], asyncio.AbstractEventLoop]] = [
    asyncio.new_event_loop,
    uvloop.new_event_loop,
]


def service() -> Loopscope:
    async def endpoint(request: Request) -> Response:
        await asyncio.gather(asyncio.sleep(0.001), asyncio.sleep(0.001))
        return PlainTextResponse("done")

    return Loopscope(Starlette(routes=[Route("/", endpoint)]))


@pytest.mark.parametrize("make", LOOPS)
def test_the_next_loop_of_a_thread_is_observed_like_the_first(make: Any) -> None:
    """Its requests, its tasks and its delay."""
    app = service()
    for _ in range(3):
        with asyncio.Runner(loop_factory=make) as runner:
            runner.run(call(app))
            loop = runner.get_loop()
        assert "close" not in vars(loop)
    assert published("http_server_request_duration_seconds_count") == 3
    assert published("loopscope_request_tasks_sum") == 6
    assert published("asyncio_tasks_created_total") >= 6


@pytest.mark.parametrize("make", LOOPS)
def test_closing_a_loop_is_as_ever(make: Any) -> None:
    """Twice is once, and nothing runs on it afterwards."""
    loop = make()
    loop.run_until_complete(call(service()))
    loop.close()
    loop.close()
    assert loop.is_closed()
    with pytest.raises(RuntimeError):
        loop.call_soon(print)
