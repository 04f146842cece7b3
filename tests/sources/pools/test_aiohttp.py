"""aiohttp's connector against a real server: five connections, more who want one."""

from __future__ import annotations

import asyncio
import gc
import time
from typing import Any

import aiohttp
import pytest

from loopscope.agent import stop_agent
from tests.harness import call, published
from tests.sources.pools.http_service import Service, started, until, upstream

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

HELD = 0.05
HERE = "tests/sources/pools/test_aiohttp.py:"


async def service_here() -> Service:
    return await started("http.aiohttp")


def session_of(connections: int = 5, **options: Any) -> aiohttp.ClientSession:
    connector = aiohttp.TCPConnector(limit=connections)
    return aiohttp.ClientSession(connector=connector, **options)


async def fetched(session: aiohttp.ClientSession, url: str, **options: Any) -> str:
    async with session.get(url, **options) as response:
        return await response.text()


async def test_who_waits_and_who_holds_is_known() -> None:
    """50 users of 5 connections: gauges in the middle, waits and uses afterwards, then nothing."""
    truth: list[float] = []
    service = await service_here()
    async with upstream() as url, session_of() as session:

        async def use() -> None:
            asked = time.perf_counter()
            await fetched(session, f"{url}/{HELD}")
            truth.append(time.perf_counter() - asked)

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
    measured = figure("wait_seconds_sum") + figure("use_seconds_sum")
    assert measured == pytest.approx(sum(truth), rel=0.05)
    # ten rounds of five, each of which waits for those before it
    assert figure("wait_seconds_sum") >= 0.95 * 45 * 5 * HELD
    assert figure("use_seconds_sum") >= 50 * HELD
    route = {"http_route": "/work"}
    assert figure("route_wait_seconds_total", **route) == pytest.approx(figure("wait_seconds_sum"))
    assert figure("route_use_seconds_total", **route) == pytest.approx(figure("use_seconds_sum"))
    phase = published("loopscope_request_phase_seconds_total", phase="pool_wait", **route)
    loop = published("loopscope_request_phase_seconds_total", phase="loop_wait", **route)
    assert phase + loop >= 0.9 * figure("wait_seconds_sum")
    assert phase > loop


async def test_timeouts_and_cancellation_are_told_apart() -> None:
    """Who gave up, of the queue or of it all, and who was cancelled; none holds anything."""
    service = await service_here()
    async with upstream() as url, session_of(1) as session:
        held = asyncio.create_task(fetched(session, f"{url}/0.5"))
        await until(lambda: len(service.held()) == 1)
        for timeout in (aiohttp.ClientTimeout(connect=0.01), aiohttp.ClientTimeout(total=0.01)):
            with pytest.raises(TimeoutError):
                await fetched(session, url, timeout=timeout)
        waiting = asyncio.create_task(fetched(session, url))
        await until(lambda: service.figure("pending") == 1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert service.figure("timeouts_total") == 2
        assert service.figure("cancelled_total") == 1
        assert (service.figure("in_use"), service.figure("pending")) == (1, 0)
        held.cancel()
        with pytest.raises(asyncio.CancelledError):
            await held
        assert service.figure("in_use") == 0
        assert await fetched(session, url) == "done"


async def test_what_goes_wrong_once_there_is_a_place_is_not_the_pools_fault() -> None:
    """A server that is slow or not there is no timeout of the pool; nothing is left in use."""
    service = await service_here()
    async with session_of() as session:
        async with upstream() as url:
            with pytest.raises(TimeoutError):
                await fetched(session, f"{url}/5", timeout=aiohttp.ClientTimeout(sock_read=0.02))
        with pytest.raises(aiohttp.ClientConnectorError):
            await fetched(session, url)
    assert service.figure("use_seconds_count") == service.figure("wait_seconds_count") == 2
    assert service.figure("timeouts_total") == service.figure("rejected_total") == 0
    assert service.figure("in_use") == service.figure("pending") == 0
    assert service.figure("create_seconds_count") == 1


async def test_connections_made_are_known_by_route_and_line() -> None:
    """Each is timed, and its maker is who waited for it, in whatever function."""
    service = await service_here()
    async with upstream() as url, session_of() as session:

        async def helper() -> None:
            await fetched(session, f"{url}/{HELD}")

        await service.requests(helper, 3)
    assert service.figure("create_seconds_count") == 3
    assert 0 < service.figure("create_seconds_sum") < service.figure("use_seconds_sum")
    (made,) = service.creations()
    assert made["http_route"] == "/work"
    assert made["site"].startswith(HERE)
    assert made["site"].endswith(" fetched")


async def test_a_session_for_each_request_shows_in_what_it_makes() -> None:
    """One name for all of them, after the line that makes them, and a connection each."""
    service = await service_here()
    async with upstream() as url:

        async def careless() -> None:
            async with aiohttp.ClientSession() as session:
                await fetched(session, url.replace("http://", "http://user:secret@"))

        for _ in range(5):
            await service.requests(careless)
    (made,) = service.creations()
    assert made["pool"].startswith(f"aiohttp {HERE}")
    assert made["pool"].endswith("careless")
    assert service.figure("creations_total", http_route="/work") == 5


async def test_a_session_from_before_is_known_by_the_host_it_asks() -> None:
    """Nobody saw where it was made; its requests are measured all the same."""
    async with upstream() as url, session_of(0) as session:
        service = await service_here()
        await fetched(session, url.replace("http://", "http://user:secret@"))
        assert service.names() == [f"aiohttp {url.removeprefix('http://')}"]
        assert service.figure("use_seconds_count") == service.figure("idle") == 1
        assert service.figure("capacity") == 0


async def test_a_stream_that_nobody_reads_is_known_by_who_asked() -> None:
    """It is in use until it is closed, by the line of who forgot to."""
    service = await service_here()
    async with upstream() as url, session_of() as session:
        kept: list[aiohttp.ClientResponse] = []

        async def forgetful() -> None:
            kept.append(await session.get(f"{url}/0?endless"))

        await service.requests(forgetful)
        (use,) = service.held()
        assert use.place is not None and use.place[0].co_qualname.endswith("forgetful")
        assert service.figure("in_use") == 1
        kept[0].close()
        assert service.figure("in_use") == 0


async def test_a_session_that_is_closed_is_gone() -> None:
    """Even where a response is not read to its end; what is released later is no fault."""
    service = await service_here()
    async with upstream() as url:
        session = session_of()
        response = await session.get(f"{url}/0?endless")
        assert (service.figure("capacity"), service.figure("in_use")) == (5, 1)
        await session.close()
        assert service.figure("capacity") == service.figure("in_use") == 0
        response.close()
        assert service.figure("use_seconds_count") == 1


@pytest.mark.filterwarnings("ignore:unclosed", "ignore:Unclosed")
async def test_a_session_that_is_dropped_is_gone() -> None:
    """Nothing of ours keeps it; its gauges go to zero."""
    service = await service_here()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    async with upstream() as url:
        session = session_of()
        await fetched(session, url)
        assert service.figure("capacity") == 5
        del session
        gc.collect()
        assert service.figure("capacity") == service.figure("idle") == 0


async def test_stopping_leaves_the_library_as_it_was() -> None:
    """And sessions that were measured go on without us."""
    classes = [aiohttp.BaseConnector, aiohttp.TCPConnector, aiohttp.UnixConnector]
    before = [dict(vars(each)) for each in classes]
    service = await service_here()
    async with upstream() as url, session_of() as session:
        assert [dict(vars(each)) for each in classes] != before
        await fetched(session, url)
        async with session.get(url) as response:
            stop_agent()
            await response.read()
        assert [dict(vars(each)) for each in classes] == before
        await call(service.app)
        assert await fetched(session, url) == "done"
        assert service.figure("use_seconds_count") == 1
