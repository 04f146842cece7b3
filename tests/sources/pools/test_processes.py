"""Process pools as pools."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from tests.harness import call, label_sets, published

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.real_time,
    pytest.mark.blocking_allowed,
]  # wrapped, sleep is no function to pickle

HELD = 0.1


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two workers, which are there."""
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, [HELD] * 4))
        yield pool


def figure(name: str, **labels: str) -> float:
    return published(f"loopscope_pool_{name}", kind="processes", **labels)


def handing(pool: ProcessPoolExecutor, seconds: float) -> Loopscope:
    async def endpoint(request: Request) -> Response:
        await asyncio.get_running_loop().run_in_executor(pool, time.sleep, seconds)
        return PlainTextResponse("done")

    return Loopscope(Starlette(routes=[Route("/", endpoint)]))


async def test_who_waits_and_who_runs_is_known(pool: ProcessPoolExecutor) -> None:
    """Six users of two workers; the pool goes by the line that handed it its first function."""
    app = handing(pool, HELD)
    requests = [asyncio.create_task(call(app)) for _ in range(6)]
    while (figure("in_use"), figure("idle"), figure("pending")) != (2, 0, 4):
        assert not all(request.done() for request in requests)
        await asyncio.sleep(HELD / 20)
    assert figure("capacity") == 2
    await asyncio.gather(*requests)
    assert (figure("in_use"), figure("pending"), figure("idle")) == (0, 0, 2)
    assert figure("use_seconds_count") == figure("wait_seconds_count") == 6
    assert figure("use_seconds_sum") >= 6 * HELD
    assert figure("route_use_seconds_total", http_route="/") >= 6 * HELD
    run = published("loopscope_request_phase_seconds_total", phase="thread_run")
    assert figure("wait_seconds_sum") >= 6 * HELD * 0.9  # twice nobody, two of them, four of them
    assert run == pytest.approx(figure("use_seconds_sum"), rel=0.1)
    (name,) = {labels["pool"] for labels in label_sets("loopscope_pool_capacity", kind="processes")}
    assert name.startswith("process pool tests/sources/pools/test_processes.py:")


async def test_a_job_cancelled_in_the_queue_waits_no_more(pool: ProcessPoolExecutor) -> None:
    """It counts as cancelled."""
    await call(handing(pool, 0))
    ahead = [pool.submit(time.sleep, HELD) for _ in range(5)]  # two run, and one is in the pipe
    last = pool.submit(time.sleep, HELD)
    assert figure("pending") == 4
    assert last.cancel()
    assert figure("pending") == 3
    assert figure("cancelled_total") == 1
    await asyncio.gather(*map(asyncio.wrap_future, ahead))
