"""Jobs that requests hand to threads, through the real middleware on every kind of loop."""

from __future__ import annotations

import asyncio
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio._backends._asyncio import AsyncIOBackend
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import Agent, current_agent, stop_agent
from loopscope.core.faults import Faults
from loopscope.sources.ledger import current
from tests.harness import Server, call, http_scope, published

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

DURATION = "http_server_request_duration_seconds"
PARTS = ("loop_run", "loop_wait", "pool_wait", "thread_wait", "thread_run", "client_upload",
         "client_download", "await_other")  # fmt: skip
SLEEP = 0.05

Hop = Callable[[Callable[[], Any]], Any]
"""Runs a function in a thread, from the loop."""


def phase(name: str) -> float:
    return published("loopscope_request_phase_seconds_total", phase=name)


def assert_phases_add_up() -> None:
    """The conservation law, and no phase that took time from another to owe it."""
    parts = [phase(name) for name in PARTS]
    assert min(parts) > -1e-6
    assert sum(parts) == pytest.approx(published(f"{DURATION}_sum"), rel=1e-6, abs=1e-6)


def service(endpoint: Any) -> Loopscope:
    return Loopscope(Starlette(routes=[Route("/", endpoint)]))


def handing(function: Callable[[], Any], hop: Hop) -> Loopscope:
    """A service whose one endpoint has ``function`` run in a thread."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(await hop(function)))

    return service(endpoint)


async def by_anyio(function: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(function)


async def by_anyio_with_own_limiter(function: Callable[[], Any]) -> Any:
    return await anyio.to_thread.run_sync(function, limiter=anyio.CapacityLimiter(1))


async def by_to_thread(function: Callable[[], Any]) -> Any:
    return await asyncio.to_thread(function)


async def by_default_executor(function: Callable[[], Any]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function)


async def by_own_executor(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.get_running_loop().run_in_executor(executor, function)


async def by_submit(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return await asyncio.wrap_future(executor.submit(function))


HOPS = (
    by_anyio,
    by_anyio_with_own_limiter,
    by_to_thread,
    by_default_executor,
    by_own_executor,
    by_submit,
)
every_hop = pytest.mark.parametrize("hop", HOPS)


class Sleeper:
    """Sleeps and knows how long that took, each time."""

    def __init__(self, seconds: float = SLEEP) -> None:
        self.seconds = seconds
        self.took: list[float] = []

    def __call__(self, *_: object) -> str:
        began = time.perf_counter()
        time.sleep(self.seconds)
        self.took.append(time.perf_counter() - began)
        return "slept"

    def queueing(self) -> float:
        """What those that came at once and were served one by one have waited in all."""
        return sum(took * behind for behind, took in enumerate(reversed(self.took)))


@pytest.fixture(autouse=True)
def nothing_patched() -> Iterator[None]:
    """After each test the methods are the very objects they were before."""
    submit = ThreadPoolExecutor.submit
    in_worker = vars(AsyncIOBackend)["run_sync_in_worker_thread"]
    yield
    stop_agent()
    assert ThreadPoolExecutor.submit is submit
    assert vars(AsyncIOBackend)["run_sync_in_worker_thread"] is in_worker


@every_hop
async def test_running_in_a_thread_is_thread_run(hop: Hop) -> None:
    """However a function gets into a thread, its time there is thread_run and little else is."""
    sleeper = Sleeper()
    assert (await call(handing(sleeper, hop))).body == b"slept"
    assert sum(sleeper.took) * 0.9 < phase("thread_run") < published(f"{DURATION}_sum")
    assert phase("thread_wait") + phase("await_other") < phase("thread_run")
    assert_phases_add_up()


async def test_sync_endpoints_and_dependencies_run_in_threads() -> None:
    """FastAPI's sync endpoint, sync dependency and both ends of a yield dependency are seen."""
    sleeper = Sleeper()
    api = FastAPI()

    def dependency() -> str:
        return sleeper()

    def resource() -> Iterator[str]:
        yield sleeper()
        sleeper()

    @api.get("/")
    def endpoint(one: str = Depends(dependency), two: str = Depends(resource)) -> str:
        return sleeper() + one + two

    assert (await call(Loopscope(api))).status == 200
    in_time = sum(sleeper.took[:3])  # what the yield dependency does at last, FastAPI may do late
    assert len(sleeper.took) == 4
    assert in_time * 0.9 < phase("thread_run") < published(f"{DURATION}_sum")
    assert_phases_add_up()


async def test_files_are_sent_through_threads(tmp_path: Path) -> None:
    """A FileResponse's reads are jobs like others, and the file arrives whole."""
    content = bytes(1_000_000)
    (tmp_path / "file").write_bytes(content)

    async def endpoint(request: Request) -> Response:
        return FileResponse(tmp_path / "file")

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    server = Server()
    await service(endpoint)(http_scope(), receive, server.send)
    assert server.body == content
    assert phase("thread_run") > 0
    assert_phases_add_up()


async def test_waiting_for_a_token_is_thread_wait() -> None:
    """Five requests behind anyio's only token wait for 0, 1, 2, 3 and 4 of them."""
    sleeper = Sleeper()

    def endpoint(request: Request) -> Response:
        return PlainTextResponse(sleeper())

    app = service(endpoint)
    await call(app)  # thread and agent are there
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens, before = 1, limiter.total_tokens
    waited = phase("thread_wait")
    sleeper.took.clear()
    try:
        await asyncio.gather(*(call(app) for _ in range(5)))
    finally:
        limiter.total_tokens = before
    waited = phase("thread_wait") - waited
    assert sleeper.queueing() * 0.8 < waited < sleeper.queueing() * 1.5
    assert_phases_add_up()


async def test_waiting_for_an_executors_thread_is_thread_wait() -> None:
    """Five requests before an executor's only thread wait for 0, 1, 2, 3 and 4 of them."""
    sleeper = Sleeper()
    with ThreadPoolExecutor(1) as executor:
        app = handing(sleeper, lambda f: asyncio.get_running_loop().run_in_executor(executor, f))
        await asyncio.gather(*(call(app) for _ in range(5)))
    assert sleeper.queueing() * 0.8 < phase("thread_wait") < sleeper.queueing() * 1.5
    assert sum(sleeper.took) * 0.9 < phase("thread_run") < sum(sleeper.took) * 1.5
    assert_phases_add_up()


async def test_many_jobs_at_once_are_one_line_of_time() -> None:
    """With a hundred jobs at once, queued is first and running is what is left; nothing twice."""
    sleeper = Sleeper(0.01)

    async def endpoint(request: Request) -> Response:
        with ThreadPoolExecutor(10) as executor:
            loop = asyncio.get_running_loop()
            await asyncio.gather(*(loop.run_in_executor(executor, sleeper) for _ in range(100)))
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert len(sleeper.took) == 100
    duration = published(f"{DURATION}_sum")
    assert phase("thread_wait") > phase("thread_run") > 0
    assert phase("thread_wait") + phase("thread_run") < duration
    assert phase("await_other") < duration / 4
    assert_phases_add_up()


@pytest.mark.parametrize("hop", [by_anyio, by_to_thread, by_default_executor])
async def test_after_the_job_a_request_waits_for_the_loop(hop: Hop) -> None:
    """A job that ends while others hold the loop leaves its request waiting for nothing else."""
    moments: list[float] = []

    def job() -> None:
        moments.append(time.perf_counter())
        time.sleep(0.01)
        moments.append(time.perf_counter())

    async def timed(function: Callable[[], Any]) -> None:
        await hop(function)
        moments.append(time.perf_counter())

    app = handing(job, timed)
    await call(app)  # a thread made on the way could end the job before anybody waits for it
    before = phase("loop_wait")
    moments.clear()
    request = asyncio.create_task(call(app))
    while not moments:
        await asyncio.sleep(0.001)
    time.sleep(0.04)  # short of a stall
    await request
    _, ended, resumed = moments
    assert phase("loop_wait") - before == pytest.approx(resumed - ended, rel=0.1)
    assert_phases_add_up()


@every_hop
async def test_errors_come_back_as_they_are(hop: Hop) -> None:
    """An exception from a thread is the same object, with one frame of ours that holds nothing."""
    error = LookupError("no")

    def fails() -> None:
        raise error

    async def endpoint(request: Request) -> Response:
        with pytest.raises(LookupError) as caught:
            await hop(fails)
        assert caught.value is error
        assert error.__cause__ is error.__context__ is None
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        ours = [f for f in frames if f.f_code.co_filename.endswith("sources/threads.py")]
        return PlainTextResponse(str([frame.f_locals for frame in ours]))

    assert (await call(service(endpoint))).body == b"[{}]"
    assert_phases_add_up()


async def test_a_request_that_fails_in_a_thread_adds_up() -> None:
    """What a thread raises is the request's error, and its phases add up."""
    sleeper = Sleeper()

    def fails() -> None:
        sleeper()
        raise LookupError

    with pytest.raises(LookupError):
        await call(handing(fails, by_anyio))
    assert published(f"{DURATION}_count", error_type="LookupError") == 1
    assert phase("thread_run") > sum(sleeper.took) * 0.9
    assert_phases_add_up()


@every_hop
async def test_the_thread_knows_its_request_from_the_first_step(hop: Hop) -> None:
    """Even if nobody had asked for the request when its context was copied, nor waited."""
    seen: list[object] = []
    await call(handing(lambda: seen.append(current()), hop))
    assert seen[0] is not None


@every_hop
async def test_the_thread_knows_its_request(hop: Hop) -> None:
    """In the thread the request is the current one, and afterwards the thread knows none."""
    seen: list[object] = []

    async def twice(function: Callable[[], Any]) -> None:
        seen.append(current())
        await hop(function)

    await call(handing(lambda: seen.append(current()), twice))
    assert seen[0] is seen[1] is not None
    await hop(lambda: seen.append(current()))
    assert seen[2] is None


async def test_an_executors_thread_forgets_its_request() -> None:
    """The thread that ran a request's job runs the next one without it."""
    seen: list[object] = []
    with ThreadPoolExecutor(1) as executor:
        await call(
            handing(
                lambda: seen.append(current()),
                lambda f: asyncio.get_running_loop().run_in_executor(executor, f),
            )
        )
        executor.submit(lambda: seen.append(current())).result()
    assert seen[0] is not None
    assert seen[1] is None


async def test_context_and_thread_names_are_as_without_us() -> None:
    """Context variables arrive where they did before, and threads keep their names."""
    variable: ContextVar[str] = ContextVar("variable", default="default")

    def look() -> tuple[str, str]:
        name = threading.current_thread().name  # ends in which of an executor's threads it was
        return variable.get(), name.rstrip("0123456789")

    async def by_all() -> list[object]:
        variable.set("set")
        return [await hop(look) for hop in (by_anyio, by_to_thread, by_default_executor)]

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(repr(await by_all()))

    expected = repr(await asyncio.create_task(by_all()))  # which also made the threads
    assert (await call(service(endpoint))).body.decode() == expected


async def test_a_cancelled_job_in_the_queue_is_over_at_once() -> None:
    """What was queued and cancelled waits no more, though its thread is busy for longer."""
    release = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(release.wait)

        async def endpoint(request: Request) -> Response:
            queued = asyncio.get_running_loop().run_in_executor(executor, time.sleep, 9)
            await asyncio.sleep(0.01)
            queued.cancel()
            await asyncio.sleep(0.2)
            return PlainTextResponse("done")

        await call(service(endpoint))
        release.set()
    assert 0 < phase("thread_wait") < phase("await_other") / 2
    assert phase("thread_run") == 0
    assert_phases_add_up()


@pytest.mark.parametrize("abandon", [False, True])
async def test_a_job_cancelled_before_its_token_is_over_at_once(abandon: bool) -> None:
    """Who stops waiting for anyio's limiter waits no more."""
    limiter = anyio.CapacityLimiter(1)

    async def endpoint(request: Request) -> Response:
        async with limiter:
            with anyio.move_on_after(0.01):
                async with anyio.create_task_group() as group:
                    group.start_soon(_in_thread, limiter, abandon)
            await asyncio.sleep(0.2)
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert 0 < phase("thread_wait") < phase("await_other") / 2
    assert phase("thread_run") == 0
    agent = current_agent()
    assert agent is not None and not _waiting(agent)
    assert_phases_add_up()


def _waiting(agent: Agent) -> list[object]:
    meters = {*agent.threads._pools._meters.values(), agent.threads._pools._aside} - {None}
    return [job for meter in meters if meter is not None for job in meter.waiting]


async def _in_thread(limiter: anyio.CapacityLimiter, abandon: bool) -> None:
    await anyio.to_thread.run_sync(time.sleep, 9, limiter=limiter, abandon_on_cancel=abandon)


async def test_an_abandoned_job_runs_until_it_has_ended() -> None:
    """Giving up on a running function does not end it; its end does."""
    sleeper = Sleeper(0.1)

    async def endpoint(request: Request) -> Response:
        with anyio.move_on_after(0.02):
            await anyio.to_thread.run_sync(sleeper, abandon_on_cancel=True)
        await asyncio.sleep(0.3)
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert sum(sleeper.took) * 0.9 < phase("thread_run") < sum(sleeper.took) * 1.5
    assert phase("await_other") > sum(sleeper.took)
    assert_phases_add_up()


@every_hop
async def test_a_cancelled_request_adds_up(hop: Hop) -> None:
    """A request that is cancelled while its job runs has its phases add up to its duration."""
    began, release = threading.Event(), threading.Event()

    def job() -> None:
        began.set()
        release.wait()

    task = asyncio.create_task(call(handing(job, hop)))
    while not began.is_set():  # an agent may take its time to start, and a thread as well
        await asyncio.sleep(0.001)
    await asyncio.sleep(SLEEP / 2)
    task.cancel()
    releasing = threading.Timer(SLEEP / 2, release.set)  # some hops hold the loop until then
    releasing.start()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert phase("thread_run") > phase("await_other")
    assert_phases_add_up()
    releasing.join()


async def test_a_job_that_outlives_its_request_changes_nothing() -> None:
    """What is fired and forgotten counts as long as the request is there, and not after."""
    release = threading.Event()
    jobs: list[Future[bool]] = []
    with ThreadPoolExecutor(1) as executor:

        async def endpoint(request: Request) -> Response:
            jobs.extend(executor.submit(release.wait) for _ in range(2))
            return PlainTextResponse("done")

        await call(service(endpoint))
        parts = {name: phase(name) for name in PARTS}
        release.set()
        assert all(job.result() for job in jobs)
    assert {name: phase(name) for name in PARTS} == parts
    assert_phases_add_up()


async def test_background_jobs_leave_nothing_behind() -> None:
    """After the answer jobs are not followed: there is nothing left to share out."""
    seen: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
        await asyncio.sleep(0)
        exchange = current()
        assert exchange is not None
        for _ in range(10):
            await asyncio.to_thread(int)
        seen.append(len(exchange.ledger.gaps.changes) if exchange.ledger is not None else 0)

    await call(Loopscope(app))
    assert seen == [0]


async def test_a_submit_that_is_refused_leaves_nothing_behind() -> None:
    """An executor that is shut down says so as ever, and its job is over."""

    async def endpoint(request: Request) -> Response:
        executor = ThreadPoolExecutor(1)
        executor.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(int)
        await asyncio.sleep(0.1)
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert phase("thread_wait") < phase("await_other") / 2
    assert_phases_add_up()


async def test_functions_that_are_pickled_are_left_alone() -> None:
    """An executor of other interpreters gets the very function it was given."""
    given: list[object] = []

    class InterpreterPoolExecutor(ThreadPoolExecutor):
        """As in Python 3.14, which pickles what its parent's ``submit`` is called with."""

        def _adjust_thread_count(self) -> None:
            given.append(self._work_queue.get_nowait().fn)

    async def endpoint(request: Request) -> Response:
        InterpreterPoolExecutor(1).submit(print)
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert given == [print]


async def test_a_job_nobody_awaits_is_warned_of_as_ever() -> None:
    """Anyio's coroutine is handed on as it is: unawaited, it says so when it is dropped."""

    async def endpoint(request: Request) -> Response:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            unawaited = AsyncIOBackend.run_sync_in_worker_thread(int, ())
            del unawaited
        await asyncio.sleep(0.1)
        return PlainTextResponse(str(len(caught)))

    assert (await call(service(endpoint))).body == b"1"
    assert phase("thread_wait") < phase("await_other") / 2


async def test_threads_may_ask_the_loop_and_hand_on_jobs() -> None:
    """A sync endpoint that calls back into the loop and waits for other threads adds up."""
    with ThreadPoolExecutor(1) as executor:
        sleeper = Sleeper()

        def endpoint(request: Request) -> Response:
            anyio.from_thread.run(asyncio.sleep, 0.01)
            return PlainTextResponse(executor.submit(sleeper).result())

        assert (await call(service(endpoint))).body == b"slept"
    assert phase("thread_wait") + phase("thread_run") > sum(sleeper.took) * 0.9
    assert_phases_add_up()


async def test_outside_of_requests_no_request_is_charged() -> None:
    """A job that no request has handed over counts for its pool alone."""
    await call(handing(int, by_anyio))
    phases = {name: phase(name) for name in PARTS}
    for hop in HOPS:
        await hop(Sleeper())
    assert {name: phase(name) for name in PARTS} == phases
    assert published("loopscope_pool_route_use_seconds_total", http_route="") > SLEEP


async def test_a_patch_around_ours_survives_us(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever has replaced our method keeps theirs when we stop, and it goes on working."""
    original = ThreadPoolExecutor.submit
    monkeypatch.setattr(ThreadPoolExecutor, "submit", original)  # to be put back in the end
    await call(handing(int, by_to_thread))
    ours = ThreadPoolExecutor.submit
    calls: list[object] = []

    def theirs(executor: Any, function: Any, /, *arguments: Any) -> Any:
        calls.append(function)
        return ours(executor, function, *arguments)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", theirs)
    stop_agent()
    assert ThreadPoolExecutor.submit is theirs
    assert await by_to_thread(lambda: 7) == 7
    assert len(calls) == 1
    monkeypatch.setattr(ThreadPoolExecutor, "submit", original)


@pytest.mark.quiet_faults
@every_hop
async def test_a_fault_of_ours_leaves_the_job_alone(
    hop: Hop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When following a job fails, it runs as without us, and the fault is counted."""
    app = handing(lambda: "done", hop)
    assert (await call(app)).body == b"done"
    assert not Faults.loud
    broken = "loopscope.sources.requests.HttpExchange.shared_gaps"
    monkeypatch.setattr(broken, lambda _: 1 / 0)
    assert (await call(app)).body == b"done"
    assert published("loopscope_agent_errors_total", part="threads") > 0
