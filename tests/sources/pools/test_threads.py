"""Threads as pools: anyio's limiters and executors, on every kind of loop."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from concurrent.futures.thread import BrokenThreadPool
from typing import Any

import anyio
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent, stop_agent
from tests.harness import call, label_sets, published

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

HELD = 0.04
Hop = Callable[[Callable[[], Any]], Any]


def figure(name: str, pool: str, **labels: str) -> float:
    return published(f"loopscope_pool_{name}", pool=pool, kind="threads", **labels)


def names() -> list[str]:
    return sorted(
        labels["pool"] for labels in label_sets("loopscope_pool_capacity", kind="threads")
    )


class Timed:
    """A function for threads that knows how long it waited for one, and how long it had it.

    It has it until the gate opens.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.waited = 0.0
        self.used = 0.0

    async def by(self, hop: Hop) -> None:
        asked = time.perf_counter()

        def work() -> None:
            began = time.perf_counter()
            self.gate.wait(30)
            self.waited += began - asked
            self.used += time.perf_counter() - began

        await hop(work)


def service(endpoint: Any) -> Loopscope:
    return Loopscope(Starlette(routes=[Route("/work", endpoint), Route("/", endpoint)]))


def handing(hop: Hop, timed: Timed | None = None) -> Loopscope:
    async def endpoint(request: Request) -> Response:
        await (hop(int) if timed is None else timed.by(hop))
        return PlainTextResponse("done")

    return service(endpoint)


def into(executor: ThreadPoolExecutor) -> Hop:
    return lambda function: asyncio.get_running_loop().run_in_executor(executor, function)


async def by_default_limiter(function: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(function)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(5, thread_name_prefix="work") as executor:
        yield executor


async def saturated(name: str, hop: Hop) -> None:
    """50 users of 5 threads: gauges in the middle, waits and uses afterwards, then nothing."""
    timed = Timed()
    app = handing(hop, timed)
    requests = [asyncio.create_task(call(app, "/work")) for _ in range(50)]
    while figure("in_use", name) + figure("pending", name) < 50:
        await asyncio.sleep(0.01)
    await asyncio.sleep(HELD)
    assert figure("capacity", name) == figure("in_use", name) == 5
    assert (figure("idle", name), figure("pending", name)) == (0, 45)
    assert figure("oldest_wait_seconds", name) >= HELD
    timed.gate.set()
    await asyncio.gather(*requests)
    assert figure("in_use", name) == figure("pending", name) == 0
    assert figure("idle", name) == 5
    assert figure("use_seconds_count", name) == figure("wait_seconds_count", name) == 50
    waited, used = figure("wait_seconds_sum", name), figure("use_seconds_sum", name)
    assert waited == pytest.approx(timed.waited, rel=0.05)
    assert used == pytest.approx(timed.used, rel=0.05)
    route = {"http_route": "/work"}
    assert figure("route_wait_seconds_total", name, **route) == pytest.approx(waited)
    assert figure("route_use_seconds_total", name, **route) == pytest.approx(used)
    assert published("loopscope_request_phase_seconds_total", phase="pool_wait") == 0
    phases = {
        name: published("loopscope_request_phase_seconds_total", phase=name, **route)
        for name in ("thread_wait", "loop_wait")
    }
    assert sum(phases.values()) >= 0.95 * waited
    assert phases["thread_wait"] > phases["loop_wait"]


async def test_who_waits_for_an_executor_and_who_runs_is_known(
    executor: ThreadPoolExecutor,
) -> None:
    """It goes by its threads' name; the waits are the ledger's thread_wait and no pool_wait."""
    await saturated("work", into(executor))


async def test_who_waits_for_anyios_limiter_and_who_runs_is_known() -> None:
    """Its tokens are the capacity, whatever they are set to."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens, before = 5, limiter.total_tokens
    try:
        await saturated("anyio default", by_default_limiter)
    finally:
        limiter.total_tokens = before


async def test_the_loops_own_executor_is_the_default_one() -> None:
    """On any loop, by to_thread and run_in_executor alike."""
    await call(handing(asyncio.to_thread))
    await call(handing(lambda f: asyncio.get_running_loop().run_in_executor(None, f)))
    assert names() == ["default executor"]
    assert figure("use_seconds_count", "default executor") == 2


async def test_an_executor_without_a_name_goes_by_a_line() -> None:
    """That of the service's code that handed it its first function, and our own is not listed."""
    with ThreadPoolExecutor(1) as executor:
        await call(handing(into(executor)))
        (name,) = names()
    assert name.startswith("executor tests/sources/pools/test_threads.py:")
    assert name.removeprefix("executor tests/sources/pools/test_threads.py:").isdigit()


async def test_executors_made_per_request_share_a_name_and_show_as_made() -> None:
    """Who makes one for each request has that many threads started, by route and line."""

    async def endpoint(request: Request) -> Response:
        with ThreadPoolExecutor(1) as executor:
            await asyncio.get_running_loop().run_in_executor(executor, int)
        return PlainTextResponse("done")

    app = service(endpoint)
    for _ in range(10):
        await call(app, "/work")
        gc.collect()
    made = {"http_route": "/work", "kind": "threads"}
    assert published("loopscope_pool_creations_total", **made) == 10
    (sites,) = {labels["site"] for labels in label_sets("loopscope_pool_creations_total")}
    assert sites.startswith("tests/sources/pools/test_threads.py:")
    assert len({labels["pool"] for labels in label_sets("loopscope_pool_use_seconds_count")}) == 1


async def test_each_loop_has_a_default_limiter_of_its_own() -> None:
    """A second loop's is told apart by a number."""
    await call(handing(by_default_limiter))
    in_thread = threading.Event()

    async def other_loop() -> None:
        await anyio.to_thread.run_sync(in_thread.set)
        while names() != ["anyio default", "anyio default #2"]:
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(asyncio.wait_for(other_loop(), 30)))
    thread.start()
    while thread.is_alive():
        await asyncio.sleep(0.01)
    assert in_thread.is_set()


async def test_limiters_that_are_thrown_away_are_no_pools() -> None:
    """FastAPI makes one for each clean-up of a dependency; the endpoint's hops are all there is."""
    api = FastAPI()

    def resource() -> Iterator[int]:
        yield 1

    @api.get("/")
    def endpoint(one: int = Depends(resource)) -> int:
        return one

    app = Loopscope(api)
    for _ in range(5):
        assert (await call(app)).status == 200
    assert names() == ["anyio default"]
    assert figure("use_seconds_count", "anyio default") >= 10
    agent = current_agent()
    assert agent is not None
    assert not agent.threads._pools._aside.waiting | agent.threads._pools._aside.held


async def test_a_limiter_handed_to_run_sync_is_a_pool() -> None:
    """By the line that used it first; one of a single token from its second use on."""
    three, one = anyio.CapacityLimiter(3), anyio.CapacityLimiter(1)
    for limiter in (three, one, one):
        await call(handing(lambda f: anyio.to_thread.run_sync(f, limiter=limiter)))
    found = names()
    assert len(found) == 2
    assert all(name.startswith("limiter tests/sources/pools/test_threads.py:") for name in found)
    assert sorted(figure("capacity", name) for name in found) == [1, 3]
    assert [figure("use_seconds_count", name) for name in found] == [1, 1]


async def test_functions_handed_over_outside_of_requests_count_for_their_pool(
    executor: ThreadPoolExecutor,
) -> None:
    """With an empty route."""
    await call(handing(into(executor)))
    timed = Timed()
    asyncio.get_running_loop().call_later(HELD, timed.gate.set)
    await timed.by(into(executor))
    outside = figure("route_use_seconds_total", "work", http_route="")
    assert outside == pytest.approx(timed.used, rel=0.05)


async def test_what_is_cancelled_in_the_queue_never_runs() -> None:
    """It counts as cancelled, and neither waits nor runs any more."""
    release = threading.Event()
    executor = ThreadPoolExecutor(1, thread_name_prefix="work")
    try:
        await call(handing(into(executor)))
        executor.submit(release.wait, 30)
        while figure("in_use", "work") == 0:
            await asyncio.sleep(0.01)
        queued = executor.submit(int)
        assert figure("pending", "work") == 1
        assert queued.cancel()
        assert figure("pending", "work") == 0
        executor.submit(int)
        executor.shutdown(wait=False, cancel_futures=True)
        assert figure("pending", "work") == 0
        with pytest.raises(RuntimeError):
            executor.submit(int)
        assert (figure("cancelled_total", "work"), figure("rejected_total", "work")) == (2, 1)
    finally:
        release.set()


@pytest.mark.blocking_allowed
async def test_what_a_broken_pool_gives_up_at_once_waits_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its threads cannot begin: it is rejected, even where that is known as it is handed over."""
    original: Any = ThreadPoolExecutor.submit

    def slow_to_return(*arguments: Any) -> Future[Any]:
        future: Future[Any] = original(*arguments)
        wait([future])
        return future

    monkeypatch.setattr(ThreadPoolExecutor, "submit", slow_to_return)
    monkeypatch.setattr(logging.getLogger("concurrent.futures"), "disabled", True)
    with ThreadPoolExecutor(1, thread_name_prefix="work", initializer=lambda: 1 / 0) as executor:
        with pytest.raises(BrokenThreadPool):
            await call(handing(into(executor)))
        assert (figure("pending", "work"), figure("rejected_total", "work")) == (0, 1)
    stop_agent()  # ours goes before theirs does


async def test_an_abandoned_function_is_in_use_until_it_ends() -> None:
    """Its token is given back at once, but its thread is not."""
    release = threading.Event()
    await call(handing(by_default_limiter))
    with anyio.move_on_after(0.05):
        await anyio.to_thread.run_sync(release.wait, abandon_on_cancel=True)
    assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
    assert figure("in_use", "anyio default") == 1
    release.set()
    while figure("in_use", "anyio default"):
        await asyncio.sleep(0.01)


async def test_cancelled_before_there_is_a_token() -> None:
    """Who leaves the line counts as cancelled."""
    limiter = anyio.to_thread.current_default_thread_limiter()
    await call(handing(by_default_limiter))
    limiter.total_tokens, before = 1, limiter.total_tokens
    try:
        async with limiter:
            waiting = asyncio.create_task(anyio.to_thread.run_sync(int))
            await asyncio.sleep(0.01)
            assert figure("pending", "anyio default") == 1
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            del waiting
            gc.collect()
            assert figure("pending", "anyio default") == 0
            assert figure("cancelled_total", "anyio default") == 1
    finally:
        limiter.total_tokens = before


async def test_what_runs_says_where_it_is_from(executor: ThreadPoolExecutor) -> None:
    """A function that runs for long is listed by its own first line; it is no leak for that."""
    release = threading.Event()

    def endless() -> None:
        release.wait(30)

    async def endpoint(request: Request) -> Response:
        asyncio.get_running_loop().run_in_executor(executor, endless)
        return PlainTextResponse("done")

    await call(service(endpoint))
    agent = current_agent()
    assert agent is not None
    book = agent.pools.book
    now = book.now
    book.now = lambda: now() + 3.0
    published("loopscope_pool_in_use")  # looks at what has been held for a while
    published("loopscope_pool_in_use")
    (use,) = book.held()
    assert ".endless" in agent.users.describe_place(use.place)
    assert use.route_so_far() == "/"
    assert figure("leaked", "work") == 0
    release.set()


async def test_executors_that_are_dropped_are_gone() -> None:
    """Nothing of ours keeps one; its gauges go to zero. Shut down is gone as well."""
    kept = ThreadPoolExecutor(2, thread_name_prefix="kept")
    dropped = ThreadPoolExecutor(3, thread_name_prefix="dropped")
    for executor in (kept, dropped):
        await call(handing(into(executor)))
    assert (figure("capacity", "kept"), figure("capacity", "dropped")) == (2, 3)
    dropped.shutdown()
    del dropped, executor
    kept.shutdown()
    gc.collect()
    assert figure("capacity", "kept") == figure("capacity", "dropped") == 0


async def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many names threads are given, beyond a bound they share one."""
    monkeypatch.setattr("loopscope.sources.pools.threads.MOST_NAMES", 3)
    await call(handing(asyncio.to_thread))
    for number in range(6):
        with ThreadPoolExecutor(1, thread_name_prefix=f"job-{number}") as executor:
            executor.submit(int).result()
    used = {labels["pool"] for labels in label_sets("loopscope_pool_use_seconds_count")}
    assert used == {"default executor", "job-0", "job-1", "job-2", "_OVERFLOW"}


async def test_after_stopping_executors_go_on(executor: ThreadPoolExecutor) -> None:
    """With what was in the queue, and with another agent, which meets them anew."""
    app = handing(into(executor))
    await call(app)
    release = threading.Event()
    jobs = [executor.submit(release.wait, 30) for _ in range(7)]
    stop_agent()
    release.set()
    assert all(job.result() for job in jobs)
    await call(app)
    assert figure("use_seconds_count", "work") == 1
