"""Pools the service points out itself: semaphores, locks, queues, streams and its own."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import loopscope
from loopscope import Loopscope, watch_pool
from loopscope.agent import current_agent, stop_agent
from loopscope.sources.pools import watched
from tests.harness import call, label_sets, published

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

HELD = 0.03
Work = Callable[[], Awaitable[None]]


@pytest.fixture(autouse=True)
def nothing_watched(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test nothing keeps what was watched, but for the tracebacks of faults."""
    yield
    stop_agent()
    gc.collect()
    if request.node.get_closest_marker("quiet_faults"):
        watched._watched.clear()
    assert not watched._watched
    assert not watched._sources


def service(work: Work) -> Loopscope:
    async def endpoint(request: Request) -> Response:
        await work()
        return PlainTextResponse("done")

    return Loopscope(Starlette(routes=[Route("/work", endpoint), Route("/", endpoint)]))


async def started() -> None:
    async def nothing() -> None:
        pass

    await call(service(nothing))


def figure(name: str, pool: str = "uploads", **labels: str) -> float:
    return published(f"loopscope_pool_{name}", pool=pool, kind="sync", **labels)


def gauges(pool: str = "uploads") -> dict[str, float]:
    """Those that are published of it."""
    return {
        name: figure(name, pool)
        for name in ("capacity", "in_use", "idle", "pending")
        if pool in {labels["pool"] for labels in label_sets(f"loopscope_pool_{name}")}
    }


@pytest.mark.parametrize("make", [asyncio.Semaphore, asyncio.BoundedSemaphore])
async def test_who_waits_for_a_semaphore_and_who_has_it_is_known(make: Any) -> None:
    """50 users of 5: gauges in the middle, waits and uses afterwards, by route and as pool_wait."""
    semaphore = make(5)
    watch_pool("uploads", semaphore)
    truth = {"wait": 0.0, "use": 0.0}
    gate = asyncio.Event()

    async def use() -> None:
        asked = time.perf_counter()
        async with semaphore:
            got = time.perf_counter()
            await gate.wait()
            truth["use"] += time.perf_counter() - got
        truth["wait"] += got - asked

    app = service(use)
    requests = [asyncio.create_task(call(app, "/work")) for _ in range(50)]
    await asyncio.sleep(HELD)
    assert gauges() == {"capacity": 5, "in_use": 5, "idle": 0, "pending": 45}
    assert figure("oldest_wait_seconds") > 0
    await asyncio.sleep(HELD)
    gate.set()
    await asyncio.gather(*requests)
    assert gauges() == {"capacity": 5, "in_use": 0, "idle": 5, "pending": 0}
    assert figure("wait_seconds_count") == figure("use_seconds_count") == 50
    assert figure("wait_seconds_sum") == pytest.approx(truth["wait"], rel=0.05)
    assert figure("use_seconds_sum") == pytest.approx(truth["use"], rel=0.05)
    route = {"http_route": "/work"}
    assert figure("route_wait_seconds_total", **route) == pytest.approx(figure("wait_seconds_sum"))
    assert figure("route_use_seconds_total", **route) == pytest.approx(figure("use_seconds_sum"))
    phases = {
        name: published("loopscope_request_phase_seconds_total", phase=name, **route)
        for name in ("pool_wait", "loop_wait")
    }
    assert sum(phases.values()) >= 0.95 * truth["wait"]
    assert phases["pool_wait"] > phases["loop_wait"]


async def test_a_lock_is_a_pool_of_one() -> None:
    """Who waits for it is pending, and who gives up is cancelled."""
    lock = asyncio.Lock()
    await started()
    watch_pool("uploads", lock)
    async with lock:
        waiting = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0.01)
        assert gauges() == {"capacity": 1, "in_use": 1, "idle": 0, "pending": 1}
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert gauges() == {"capacity": 1, "in_use": 0, "idle": 1, "pending": 0}
    assert (figure("use_seconds_count"), figure("cancelled_total")) == (1, 1)


async def test_a_release_by_somebody_else_ends_the_oldest_use() -> None:
    """And one of nobody's ends none."""
    semaphore = asyncio.Semaphore(2)
    await started()
    watch_pool("uploads", semaphore)
    await asyncio.create_task(semaphore.acquire())
    semaphore.release()
    semaphore.release()
    assert figure("use_seconds_count") == 1
    agent = current_agent()
    assert agent is not None
    assert not agent.pools.book.held()


@pytest.mark.parametrize("make", [asyncio.Queue, asyncio.LifoQueue, asyncio.PriorityQueue])
async def test_a_queue_is_full_of_items_and_producers_wait(make: Any) -> None:
    """Its capacity is what fits, and an item uses it from when it is put until it is got."""
    queue = make(maxsize=2)
    await started()
    watch_pool("uploads", queue)
    app = service(lambda: queue.put("item"))
    requests = [asyncio.create_task(call(app, "/work")) for _ in range(5)]
    await asyncio.sleep(HELD)
    assert gauges() == {"capacity": 2, "in_use": 2, "idle": 0, "pending": 3}
    with pytest.raises(asyncio.QueueFull):
        queue.put_nowait("item")
    for _ in requests:
        assert await queue.get() == "item"
    await asyncio.gather(*requests)
    assert gauges() == {"capacity": 2, "in_use": 0, "idle": 2, "pending": 0}
    assert figure("wait_seconds_count") == figure("use_seconds_count") == 5
    assert figure("wait_seconds_sum") >= 3 * HELD * 0.95
    assert figure("use_seconds_sum") >= 2 * HELD * 0.95
    assert figure("rejected_total") == 1
    pool_wait = published("loopscope_request_phase_seconds_total", phase="pool_wait")
    assert pool_wait >= 3 * HELD * 0.9
    assert figure("leaked") == 0


async def test_who_stops_putting_is_cancelled() -> None:
    """And what was put without waiting has not waited."""
    queue: asyncio.Queue[int] = asyncio.Queue(1)
    await started()
    watch_pool("uploads", queue)
    queue.put_nowait(1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.put(2), 0.01)
    assert (figure("cancelled_total"), figure("pending"), figure("in_use")) == (1, 0, 1)
    assert queue.get_nowait() == 1
    assert figure("use_seconds_count") == 1


async def test_queues_without_a_limit_have_no_capacity() -> None:
    """What is in them is still known."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    await started()
    watch_pool("uploads", queue)
    queue.put_nowait(1)
    assert gauges() == {"in_use": 1, "pending": 0}
    queue.get_nowait()


async def test_anyios_say_how_full_they_are() -> None:
    """Semaphore, lock, limiter and stream: gauges, those made outside of a loop included."""
    send, receive = anyio.create_memory_object_stream[int](2)
    things: dict[str, Any] = {
        "semaphore": anyio.Semaphore(3),
        "lock": anyio.Lock(),
        "limiter": anyio.CapacityLimiter(2),
        "stream": send,
    }
    for name, thing in things.items():
        watch_pool(name, thing)
    await started()
    send.send_nowait(1)
    async with things["semaphore"], things["lock"], things["limiter"]:
        for name, capacity in (("semaphore", 3), ("lock", 1), ("limiter", 2), ("stream", 2)):
            expected = {"capacity": capacity, "in_use": 1, "idle": capacity - 1, "pending": 0}
            assert gauges(name) == expected
    send.close()
    receive.close()


async def test_threads_with_a_watched_limiter_are_timed() -> None:
    """Under the name it is watched by."""
    limiter = anyio.CapacityLimiter(1)
    await started()
    watching = watch_pool("uploads", limiter)
    await anyio.to_thread.run_sync(int, limiter=limiter)
    assert figure("use_seconds_count") == 1
    watching.unwatch()
    await anyio.to_thread.run_sync(int, limiter=limiter)
    assert figure("use_seconds_count") == 1


async def test_semaphores_of_threads_say_how_full_they_are() -> None:
    """Their waits are not timed."""
    semaphore = threading.Semaphore(3)
    await started()
    watch_pool("uploads", semaphore)
    with semaphore:
        assert gauges() == {"capacity": 3, "in_use": 1, "idle": 2, "pending": 0}


class Licences:
    """A pool of the service's own."""

    def __init__(self, said: Any) -> None:
        self.said = said

    def loopscope_pool(self) -> Any:
        return self.said


async def test_an_object_may_speak_for_itself() -> None:
    """What it leaves out is counted where its users say so, and timed."""
    licences = Licences({"capacity": 3, "idle": 2})
    watching = watch_pool("uploads", licences)

    async def use() -> None:
        with watching.acquiring() as acquired:
            await asyncio.sleep(HELD)
            assert figure("pending") == 1
            acquired.got()
            assert gauges() == {"capacity": 3, "in_use": 1, "idle": 2, "pending": 0}

    await call(service(use), "/work")
    assert gauges() == {"capacity": 3, "in_use": 0, "idle": 2, "pending": 0}
    assert figure("route_wait_seconds_total", http_route="/work") >= HELD * 0.95
    phase = published("loopscope_request_phase_seconds_total", phase="pool_wait")
    assert phase >= HELD * 0.9
    with pytest.raises(LookupError), watching.acquiring():
        raise LookupError
    assert figure("rejected_total") == 1


@pytest.mark.quiet_faults
async def test_an_object_that_fails_later_is_a_fault() -> None:
    """The figures of all others are there, and the fault is counted."""
    licences = Licences({"capacity": 3})
    watch_pool("licences", licences)
    lock = asyncio.Lock()
    watch_pool("uploads", lock)
    await started()
    licences.said = {"capacity": "three"}
    assert figure("capacity") == 1
    assert published("loopscope_agent_errors_total", part="pools.sync") > 0


def wrong(said: Any) -> Any:
    return Licences(said)


@pytest.mark.parametrize(
    ("error", "says", "arguments", "more"),
    [
        (TypeError, "the name is 3", (3, asyncio.Lock()), {}),
        (ValueError, "the name is empty", (" ", asyncio.Lock()), {}),
        (TypeError, "'uploads'.*object is no pool.*asyncio's Semaphore", ("uploads", object()), {}),
        (ValueError, "'uploads'.*kind='DB Pool'", ("uploads", asyncio.Lock()), {"kind": "DB Pool"}),
        (ValueError, "capacity=0;.*above 0", ("uploads", asyncio.Lock()), {"capacity": 0}),
        (TypeError, "capacity='3'", ("uploads", asyncio.Lock()), {"capacity": "3"}),
        (TypeError, "capacity=True", ("uploads", asyncio.Lock()), {"capacity": True}),
        (TypeError, "returned None, which is no mapping", ("uploads", wrong(None)), {}),
        (TypeError, "'size'; known: capacity, in_use", ("uploads", wrong({"size": 3})), {}),
        (TypeError, "'3' for 'idle'", ("uploads", wrong({"idle": "3"})), {}),
    ],
)
async def test_what_cannot_be_watched_is_refused_at_once(
    error: type[Exception], says: str, arguments: tuple[Any, Any], more: Mapping[str, Any]
) -> None:
    """The message names the pool, what is wrong, and what is allowed."""
    with pytest.raises(error, match=says):
        watch_pool(*arguments, **more)


async def test_what_cannot_be_held_weakly_is_refused() -> None:
    """Or it would be kept for ever."""

    class Slotted:
        __slots__ = ()

        def loopscope_pool(self) -> dict[str, float]:
            return {}

    with pytest.raises(TypeError, match="'uploads'.*Slotted.*__weakref__"):
        watch_pool("uploads", Slotted())


async def test_a_timed_pool_takes_no_marks() -> None:
    """Whoever marked a semaphore's uses would count them twice."""
    lock = asyncio.Lock()
    with pytest.raises(TypeError, match="timed as it is"):
        watch_pool("uploads", lock).acquiring()


async def test_watching_survives_a_restart_and_leaves_objects_as_they_were() -> None:
    """Before, between and after agents a semaphore is but a semaphore."""
    semaphore = asyncio.Semaphore(2)
    before = dict(vars(semaphore))
    watching = watch_pool("uploads", semaphore)
    assert vars(semaphore) == before
    for _ in range(2):
        await started()
        assert asyncio.iscoroutinefunction(semaphore.acquire)
        async with semaphore:
            assert figure("in_use") == 1
        stop_agent()
        assert vars(semaphore).keys() - {"_waiters"} == before.keys() - {"_waiters"}
    await started()
    watching.unwatch()
    watching.unwatch()
    assert vars(semaphore).keys() - {"_waiters"} == before.keys() - {"_waiters"}
    assert figure("capacity") == 0
    assert repr(watching) == "<WatchedPool 'uploads' (sync)>"


async def test_a_pool_in_use_when_the_agent_stops_goes_on() -> None:
    """Who holds it gives it back, and who waits for it gets it."""
    semaphore = asyncio.Semaphore(1)
    watch_pool("uploads", semaphore)
    await started()
    async with semaphore:
        waiting = asyncio.ensure_future(semaphore.acquire())
        await asyncio.sleep(0)
        stop_agent()
    assert await waiting is True
    semaphore.release()
    assert not semaphore.locked()


async def test_a_pool_that_is_dropped_is_gone() -> None:
    """Nothing of ours keeps it, and its gauges go to zero."""
    semaphore = asyncio.Semaphore(2)
    there = weakref.ref(semaphore)
    await started()
    handle = watch_pool("uploads", semaphore)
    async with semaphore:
        assert figure("capacity") == 2
    del semaphore
    gc.collect()
    assert there() is None
    assert figure("capacity") == 0
    handle.unwatch()


async def test_a_pool_watched_again_has_its_new_name() -> None:
    """And two pools of one name are told apart."""
    locks = [asyncio.Lock(), asyncio.Lock()]
    await started()
    watch_pool("old", locks[0])
    for lock in locks:
        watch_pool("uploads", lock)
    async with locks[0]:
        pass
    assert figure("capacity") == figure("capacity", "uploads #2") == 1
    assert figure("capacity", "old") == 0
    assert figure("use_seconds_count") == 1


@pytest.mark.quiet_faults
async def test_a_fault_of_ours_leaves_the_pool_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """When timing fails, a semaphore and a queue work as without us."""
    semaphore, queue = asyncio.Semaphore(1), asyncio.Queue[int](1)
    watch_pool("uploads", semaphore)
    watch_pool("items", queue)
    await started()
    for broken in ("meter.Meter.ask", "use.Use.got", "use.Use.release"):
        with monkeypatch.context() as patch:
            patch.setattr(f"loopscope.sources.pools.{broken}", lambda *_, **__: 1 / 0)
            async with semaphore:
                pass
            await queue.put(1)
            assert await queue.get() == 1
    assert published("loopscope_agent_errors_total", part="pools.watched") > 0


def test_it_is_public() -> None:
    """The names are where users look for them."""
    assert {"watch_pool", "WatchedPool"} <= set(loopscope.__all__)
