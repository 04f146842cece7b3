"""The pools of httpx and httpx2 against a real server: five connections, more who want one."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import httpcore
import httpcore2
import httpx
import httpx2
import pytest

from loopscope.agent import stop_agent
from tests.harness import call, published
from tests.sources.pools.http_service import Service, started, until, upstream

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

HELD = 0.05


CORES: dict[Any, Any] = {httpx: httpcore, httpx2: httpcore2}
"""What the client libraries have their pools from. Imported here: that would block a loop."""


@pytest.fixture(params=CORES, ids=lambda library: library.__name__)
def library(request: pytest.FixtureRequest) -> Any:
    """Each of the two client libraries."""
    return request.param


async def service_for(library: Any) -> Service:
    return await started(f"http.{library.__name__}")


def client_of(library: Any, connections: int | None = 5, **options: Any) -> Any:
    limits = library.Limits(max_connections=connections)
    return library.AsyncClient(limits=limits, **{"timeout": 10, "trust_env": False, **options})


async def test_who_waits_and_who_holds_is_known(library: Any) -> None:
    """50 users of 5 connections: gauges in the middle, waits and uses afterwards, then nothing."""
    truth = {"wait": 0.0, "use": 0.0}
    service = await service_for(library)
    async with upstream() as url, client_of(library) as client:

        async def use() -> None:
            asked = time.perf_counter()
            async with client.stream("GET", url) as response:
                got = time.perf_counter()
                await asyncio.sleep(HELD)
                await response.aread()
            truth["use"] += time.perf_counter() - got
            truth["wait"] += got - asked

        requests = asyncio.create_task(service.requests(use, 50))
        await until(lambda: len(service.held()) == 5)
        await asyncio.sleep(HELD / 2)
        figure = service.figure
        assert (figure("capacity"), figure("in_use"), figure("idle")) == (5, 5, 0)
        assert figure("pending") >= 30
        assert figure("oldest_wait_seconds") >= HELD / 2
        await requests
        assert (figure("in_use"), figure("pending"), figure("idle")) == (0, 0, 5)
    assert figure("wait_seconds_count") == figure("use_seconds_count") == 50
    asked_and_used = truth["wait"] + truth["use"]
    measured = figure("wait_seconds_sum") + figure("use_seconds_sum")
    assert measured == pytest.approx(asked_and_used, rel=0.05)
    assert figure("wait_seconds_sum") == pytest.approx(truth["wait"], rel=0.1)
    assert figure("use_seconds_sum") >= 50 * HELD
    route = {"http_route": "/work"}
    assert figure("route_wait_seconds_total", **route) == pytest.approx(figure("wait_seconds_sum"))
    assert figure("route_use_seconds_total", **route) == pytest.approx(figure("use_seconds_sum"))
    phase = published("loopscope_request_phase_seconds_total", phase="pool_wait", **route)
    loop = published("loopscope_request_phase_seconds_total", phase="loop_wait", **route)
    assert phase + loop >= 0.9 * truth["wait"]
    assert phase > loop


async def test_a_connection_that_somebody_else_was_faster_to_take_is_waited_on_for(
    library: Any,
) -> None:
    """A request that has to queue again waits once, and has nothing meanwhile."""
    service = await service_for(library)
    async with upstream() as url, client_of(library, 1) as client:
        pool = client._transport._pool

        async def use() -> None:
            await client.get(f"{url}/{HELD}")

        await service.requests(use)
        requests = asyncio.create_task(service.requests(use, 2))
        await until(lambda: sum(each.is_queued() for each in pool._requests) == 1)
        (queued,) = [each for each in pool._requests if each.is_queued()]
        queued.assign_to_connection(pool.connections[0])
        await until(queued.is_queued)
        assert (len(service.held()), service.figure("pending")) == (1, 1)
        await requests
    assert service.figure("wait_seconds_count") == service.figure("use_seconds_count") == 3
    assert service.figure("wait_seconds_sum") >= 0.8 * HELD
    assert service.figure("in_use") == service.figure("pending") == 0


async def test_timeouts_and_cancellation_are_told_apart(library: Any) -> None:
    """Who gave up and who was cancelled; neither holds anything."""
    service = await service_for(library)
    timeout = library.Timeout(10, pool=0.01)
    async with upstream() as url, client_of(library, 1, timeout=timeout) as client:
        async with client.stream("GET", url):
            with pytest.raises(library.PoolTimeout):
                await client.get(url)
            waiting = asyncio.create_task(client.get(url, timeout=10))
            await until(lambda: service.figure("pending") == 1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert service.figure("timeouts_total") == service.figure("cancelled_total") == 1
        assert service.figure("in_use") == service.figure("pending") == 0
        assert (await client.get(url)).text == "done"


async def test_what_goes_wrong_once_there_is_a_connection_is_not_the_pools_fault(
    library: Any,
) -> None:
    """A server that is slow or not there is no timeout of the pool; nothing is left in use."""
    service = await service_for(library)
    async with client_of(library) as client:
        async with upstream() as url:
            with pytest.raises(library.ReadTimeout):
                await client.get(f"{url}/5", timeout=library.Timeout(10, read=0.02))
        with pytest.raises(library.ConnectError):
            await client.get(url)
    assert service.figure("use_seconds_count") == service.figure("wait_seconds_count") == 2
    assert service.figure("timeouts_total") == service.figure("rejected_total") == 0
    assert service.figure("in_use") == service.figure("pending") == 0
    assert service.figure("create_seconds_count") == 1


async def test_connections_made_are_known_by_route_and_line(library: Any) -> None:
    """Each is timed, and its maker is who waited for it, in whatever function."""
    service = await service_for(library)
    async with upstream() as url, client_of(library) as client:

        async def helper() -> None:
            await client.get(f"{url}/{HELD}")

        await service.requests(helper, 3)
    assert service.figure("create_seconds_count") == 3
    assert 0 < service.figure("create_seconds_sum") < service.figure("use_seconds_sum")
    (made,) = service.creations()
    assert made["http_route"] == "/work"
    assert made["site"].startswith("tests/sources/pools/test_httpcore.py:")
    assert made["site"].endswith("helper")


async def test_a_client_for_each_request_shows_in_what_it_makes(library: Any) -> None:
    """One name for all of them, after the line that makes them, and a connection each."""
    service = await service_for(library)
    async with upstream() as url:

        async def careless() -> None:
            async with client_of(library) as client:
                await client.get(url.replace("http://", "http://user:secret@"))

        for _ in range(5):
            await service.requests(careless)
    (made,) = service.creations()
    assert made["pool"].startswith(f"{library.__name__} tests/sources/pools/test_httpcore.py:")
    assert made["pool"].endswith(" client_of")
    assert service.figure("creations_total", http_route="/work") == 5
    assert "secret" not in "".join(service.names())


async def test_clients_made_at_one_line_are_told_apart(library: Any) -> None:
    """The second of them that is used has a number."""
    service = await service_for(library)
    async with upstream() as url, client_of(library) as first, client_of(library) as second:
        await first.get(url)
        await second.get(url)
        name, other = service.names()
        assert other == f"{name} #2"
        del first


async def test_a_client_from_before_is_known_by_the_host_it_asks(library: Any) -> None:
    """Nobody saw where it was made; its requests are measured all the same."""
    async with upstream() as url, client_of(library) as client:
        service = await service_for(library)
        await client.get(url.replace("http://", "http://user:secret@"))
        assert service.names() == [f"{library.__name__} {url.removeprefix('http://')}"]
        assert service.figure("use_seconds_count") == 1


async def test_a_pool_without_a_limit_has_no_capacity(library: Any) -> None:
    """It is absent, not endless."""
    service = await service_for(library)
    async with upstream() as url, client_of(library, None) as client:
        await client.get(url)
        assert service.figure("capacity") == 0
        assert service.figure("idle") == 1


async def test_a_response_that_is_not_closed_is_known_by_who_asked(library: Any) -> None:
    """It is in use for as long as nobody closes it, by the line of who forgot to."""
    service = await service_for(library)
    async with upstream() as url, client_of(library) as client:
        kept: list[Any] = []

        async def forgetful() -> None:
            kept.append(await client.send(client.build_request("GET", url), stream=True))

        await service.requests(forgetful)
        (use,) = service.held()
        assert use.place is not None and use.place[0].co_qualname.endswith("forgetful")
        assert service.figure("in_use") == 1
        await kept[0].aclose()
        assert service.figure("in_use") == 0


async def test_a_client_in_threads_is_measured_as_well(library: Any) -> None:
    """The same figures, for endpoints that are no coroutines."""
    service = await service_for(library)
    limits = library.Limits(max_connections=2)
    async with upstream() as url:
        with library.Client(limits=limits, timeout=10, trust_env=False) as client:
            work = asyncio.create_task(
                service.requests(lambda: client.get(f"{url}/{HELD}"), 8, "/thread")
            )
            await until(lambda: len(service.held()) == 2)
            assert (service.figure("capacity"), service.figure("in_use")) == (2, 2)
            await work
            assert service.figure("wait_seconds_count") == service.figure("use_seconds_count") == 8
            assert service.figure("use_seconds_sum") >= 8 * HELD
            # four rounds of two: those of the second wait for one, and so on
            assert service.figure("wait_seconds_sum") >= 0.9 * (1 + 2 + 3) * 2 * HELD
            assert service.figure("in_use") == service.figure("pending") == 0
            assert {made["http_route"] for made in service.creations()} == {"/thread"}
    phase = published("loopscope_request_phase_seconds_total", phase="pool_wait")
    assert phase >= 0.9 * (1 + 2 + 3) * 2 * HELD


async def test_a_client_that_is_closed_is_gone(library: Any) -> None:
    """Its gauges go to zero, although somebody may still have it."""
    service = await service_for(library)
    async with upstream() as url, client_of(library) as client:
        await client.get(url)
        assert service.figure("capacity") == 5
        await client.aclose()
        assert service.figure("capacity") == service.figure("idle") == 0


@pytest.mark.filterwarnings("ignore:unclosed")
async def test_a_client_that_is_dropped_is_gone(library: Any) -> None:
    """Nothing of ours keeps it; its gauges go to zero."""
    service = await service_for(library)
    async with upstream() as url:
        client = client_of(library)
        await client.get(url)
        assert service.figure("capacity") == 5
        del client
        gc.collect()
        assert service.figure("capacity") == service.figure("idle") == 0


async def test_stopping_leaves_the_library_as_it_was(library: Any) -> None:
    """And clients that were measured go on without us."""
    core = CORES[library]
    flavours = core._async.connection_pool, core._sync.connection_pool
    classes = [
        each for flavour in flavours for each in vars(flavour).values() if isinstance(each, type)
    ]
    before = [dict(vars(each)) for each in classes]
    service = await service_for(library)
    async with upstream() as url, client_of(library) as client:
        assert [dict(vars(each)) for each in classes] != before
        await client.get(url)
        async with client.stream("GET", url) as response:
            stop_agent()
            await response.aread()
        assert [dict(vars(each)) for each in classes] == before
        assert (await client.get(url)).text == "done"
        await call(service.app)
        assert (await client.get(url)).text == "done"
        assert service.figure("use_seconds_count") == 1
