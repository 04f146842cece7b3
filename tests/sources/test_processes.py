"""Jobs that requests hand to process pools, through the real middleware."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent, stop_agent
from tests.harness import call, published

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.blocking_allowed,  # wrapped, sleep is no function to pickle
    pytest.mark.real_time,
]

DURATION = "http_server_request_duration_seconds"
SLEEP = 0.1


def phase(name: str) -> float:
    return published("loopscope_request_phase_seconds_total", phase=name)


def fail() -> None:
    raise LookupError("no")


def die() -> None:
    os._exit(1)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """One worker, which is there."""
    # not a fork of this process, whose threads it would miss
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(int).result()
        yield pool


@pytest.fixture(autouse=True)
def nothing_patched() -> Iterator[None]:
    submit = ProcessPoolExecutor.submit
    yield
    stop_agent()
    assert ProcessPoolExecutor.submit is submit


def handing(pool: ProcessPoolExecutor, function: Any, *arguments: Any) -> Loopscope:
    """A service whose one endpoint has ``function`` run in ``pool``."""

    async def endpoint(request: Request) -> Response:
        loop = asyncio.get_running_loop()
        return PlainTextResponse(str(await loop.run_in_executor(pool, function, *arguments)))

    return Loopscope(Starlette(routes=[Route("/", endpoint)]))


def assert_all_is_over() -> None:
    agent = current_agent()
    assert agent is not None
    for line in agent.processes._lines.values():
        assert not line._running
        assert not line._queued


async def test_running_in_a_process_is_thread_run(pool: ProcessPoolExecutor) -> None:
    """The time a free worker takes for a job is thread_run."""
    assert (await call(handing(pool, time.sleep, SLEEP))).body == b"None"
    assert SLEEP * 0.9 < phase("thread_run") < published(f"{DURATION}_sum")
    assert phase("thread_wait") == 0
    assert_all_is_over()


async def test_waiting_for_a_worker_is_thread_wait(pool: ProcessPoolExecutor) -> None:
    """Of five requests before one worker, four wait for those ahead, and each runs once."""
    app = handing(pool, time.sleep, SLEEP)
    await asyncio.gather(*(call(app) for _ in range(5)))
    run, waited = phase("thread_run"), phase("thread_wait")
    assert run > SLEEP * 5 * 0.9
    assert run * 2 * 0.8 < waited < run * 2 * 1.2  # 0 + 1 + 2 + 3 + 4 to 5
    assert run + waited < published(f"{DURATION}_sum")
    assert_all_is_over()


async def test_jobs_of_others_are_ahead_as_well(pool: ProcessPoolExecutor) -> None:
    """A request waits behind a job that no request has handed over."""
    await call(handing(pool, int))
    ahead = pool.submit(time.sleep, SLEEP)
    await call(handing(pool, int))
    assert ahead.done()
    assert phase("thread_wait") > SLEEP * 0.8
    assert phase("thread_run") < phase("thread_wait")


async def test_a_cancelled_job_leaves_the_line(pool: ProcessPoolExecutor) -> None:
    """Who gives up in the queue waits no more, and those behind move up."""
    await call(handing(pool, int))
    ahead = [pool.submit(time.sleep, SLEEP) for _ in range(3)]  # one runs, one is in the pipe
    tasks = [asyncio.create_task(call(handing(pool, int))) for _ in range(2)]
    await asyncio.sleep(SLEEP / 2)
    tasks[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await tasks[1]
    assert all(job.done() for job in ahead)
    assert phase("thread_wait") > SLEEP * 2
    assert_all_is_over()


async def test_errors_come_back_as_they_are(pool: ProcessPoolExecutor) -> None:
    """An error has its type, its text and its remote traceback, in which nothing of ours shows."""
    with pytest.raises(LookupError, match="^no$") as caught:
        await call(handing(pool, fail))
    assert "loopscope/" not in str(caught.value.__cause__)
    assert "in fail" in "".join(traceback.format_exception(caught.value))
    assert published(f"{DURATION}_count", error_type="LookupError") == 1
    assert_all_is_over()


async def test_what_cannot_be_pickled_says_so_as_ever(pool: ProcessPoolExecutor) -> None:
    """The message names the user's function, as it would without us."""
    with pytest.raises(Exception, match="lambda"):
        await call(handing(pool, lambda: None))
    assert_all_is_over()


async def test_a_pool_that_breaks_leaves_nothing_behind() -> None:
    """When a worker dies, whatever was in the line is over."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        app = handing(pool, die)
        results = await asyncio.gather(*(call(app) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(result, BrokenProcessPool) for result in results)
    assert_all_is_over()


def test_a_service_without_process_pools_does_not_get_them() -> None:
    """Starting the agent imports neither process pools nor anyio's backend."""
    program = """
import asyncio, sys
from loopscope import Loopscope
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
async def main():
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    async def send(message): pass
    await Loopscope(app)(scope, None, send)
asyncio.run(main())
print([name for name in sys.modules
       if name in ("concurrent.futures.process", "anyio._backends._asyncio")])
"""
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"
