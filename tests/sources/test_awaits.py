"""The await profile: which line of a service waited for what, found without instrumenting it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import Agent, current_agent
from loopscope.core.chains import Chain
from loopscope.core.stacks import UserCode
from loopscope.sources import awaits
from loopscope.sources.awaits import UNKNOWN, AwaitTable, Waited
from tests.harness import call, published

pytestmark = pytest.mark.anyio

NAP = 0.02
Work = Callable[[], Awaitable[None]]


def service(work: Work, *middleware: type[BaseHTTPMiddleware], **settings: Any) -> Loopscope:
    async def endpoint(request: Request) -> Response:
        await work()
        return PlainTextResponse("done")

    wrapped = [Middleware(each) for each in middleware]
    return Loopscope(Starlette(routes=[Route("/", endpoint)], middleware=wrapped), **settings)


def agent() -> Agent:
    found = current_agent()
    assert found is not None
    return found


def waited() -> dict[str, str]:
    """Function of the site and what was called there, of all waits that were long."""
    return {
        wait.site.rpartition(" ")[2].rpartition(".")[2]: wait.callee
        for wait in agent().awaits.listed()
        if wait.seconds >= NAP / 2
    }


async def sleeps() -> None:
    await asyncio.sleep(NAP)


async def waits_for_an_event() -> None:
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(NAP, event.set)
    await event.wait()


async def waits_its_turn() -> None:
    semaphore = asyncio.Semaphore(1)
    await semaphore.acquire()
    asyncio.get_running_loop().call_later(NAP, semaphore.release)
    async with semaphore:
        pass


async def takes_from_a_queue() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    asyncio.get_running_loop().call_later(NAP, queue.put_nowait, 1)
    await queue.get()


async def iterates() -> None:
    async def numbers() -> AsyncIterator[int]:
        await asyncio.sleep(NAP)
        yield 1

    async for _ in numbers():
        pass


@asynccontextmanager
async def connection() -> AsyncIterator[int]:
    await asyncio.sleep(NAP)
    yield 1


async def connects() -> None:
    async with connection():
        pass


async def takes_from_a_stream() -> None:
    give, take = anyio.create_memory_object_stream[int](1)
    asyncio.get_running_loop().call_later(NAP, give.send_nowait, 1)
    await take.receive()
    give.close()
    take.close()


async def gathers() -> None:
    async def short() -> None:
        await asyncio.sleep(NAP / 4)

    await asyncio.gather(sleeps(), short())


WAITS = (
    (sleeps, "sleep"),
    (waits_for_an_event, "Event.wait"),
    (waits_its_turn, "Semaphore.acquire"),
    (takes_from_a_queue, "Queue.get"),
    (takes_from_a_stream, "MemoryObjectReceiveStream.receive"),
)


@pytest.mark.real_time
@pytest.mark.parametrize(("work", "callee"), WAITS, ids=lambda each: getattr(each, "__name__", ""))
async def test_the_line_that_waited_and_what_it_called_are_named(work: Work, callee: str) -> None:
    """The innermost line of the service's own code, and the library's function below it."""
    await call(service(work))
    assert waited()[work.__name__] == callee
    (wait,) = agent().awaits.listed()
    assert wait.route == "/"
    assert wait.site.startswith("tests/sources/test_awaits.py:")
    assert wait.waits == 1


@pytest.mark.real_time
@pytest.mark.parametrize(("work", "function"), [(iterates, "numbers"), (connects, "connection")])
async def test_waits_inside_generators_are_found(work: Work, function: str) -> None:
    """``async for`` and ``async with`` lead to the line inside the generator that waited."""
    await call(service(work))
    assert waited() == {function: "sleep"}


@pytest.mark.real_time
async def test_of_a_gather_the_slowest_task_is_named() -> None:
    """The one that ended last is what the request waited for; each task's wait is there too."""
    await call(service(gathers))
    found = waited()  # the other one's wait as well, on a day when that is long
    assert (found["gathers"], found["sleeps"]) == ("gather(sleeps)", "sleep")


@pytest.mark.real_time
async def test_waits_under_base_http_middleware_are_found() -> None:
    """The endpoint runs in a task there, and its line is named all the same."""

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    await call(service(sleeps, Passing))
    assert waited()["sleeps"] == "sleep"


@pytest.mark.real_time
async def test_waits_are_published_by_route_site_and_callee() -> None:
    """Seconds and number of waits, each under the same labels."""
    app = service(sleeps)
    await call(app)
    await call(app)
    labels = {"http_route": "/", "callee": "sleep"}
    assert published("loopscope_await_count_total", **labels) == 2
    assert published("loopscope_await_seconds_total", **labels) >= 1.8 * NAP
    assert published("loopscope_agent_overhead_seconds_total", part="awaits") > 0


async def test_short_waits_are_left_alone() -> None:
    """Below the threshold nothing is looked at."""
    await call(service(sleeps, await_threshold=10))
    assert agent().awaits.listed() == []
    assert published("loopscope_agent_overhead_seconds_total", part="awaits") == 0


async def first() -> None:
    await asyncio.sleep(NAP)


async def second() -> None:
    await asyncio.sleep(NAP / 2)


async def one_after_the_other() -> None:
    await first()
    await second()


async def again_and_again() -> None:
    for _ in range(3):
        await asyncio.sleep(NAP / 2)


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("work", "saved"), [(one_after_the_other, NAP / 2), (again_and_again, NAP)], ids=["two", "loop"]
)
async def test_waits_that_always_follow_each_other_are_told(work: Work, saved: float) -> None:
    """With the function they part in, and what all of them but the longest took."""
    app = service(work)
    for _ in range(6):
        await call(app)
    (sequence,) = agent().awaits.sequential()
    assert sequence.location == f"tests/sources/test_awaits.py {work.__name__}"
    assert sequence.requests == 6
    assert sequence.saved_at_most == pytest.approx(6 * saved, rel=0.5)
    metric = "loopscope_sequential_await_seconds_total"
    assert published(metric, location=sequence.location) == pytest.approx(sequence.saved_at_most)


@pytest.mark.real_time
async def test_what_is_gathered_is_no_sequence() -> None:
    """Tasks of one gather wait at one time: there is nothing to save."""
    app = service(gathers)
    for _ in range(6):
        await call(app)
    assert agent().awaits.sequential() == []


@pytest.mark.real_time
async def test_what_happens_now_and_then_is_no_sequence() -> None:
    """Fewer than four of five requests with the same waits is not always."""
    works = iter([one_after_the_other, sleeps] * 4)

    async def either() -> None:
        await next(works)()

    app = service(either)
    for _ in range(8):
        await call(app)
    assert agent().awaits.sequential() == []


@pytest.mark.real_time
async def test_a_middleware_and_an_endpoint_are_no_sequence() -> None:
    """What a framework calls one after the other is not the user's to run together."""

    class Checking(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            await asyncio.sleep(NAP / 2)
            response: Response = await call_next(request)
            return response

    app = service(sleeps, Checking)
    for _ in range(6):
        await call(app)
    assert agent().awaits.sequential() == []


def table(**more: Any) -> AwaitTable:
    clock: Callable[[], float] = more.pop("clock", lambda: 0.0)
    return AwaitTable(clock, UserCode(), threshold=0.001, sequential=0.005, **more)


async def idle() -> None:
    await asyncio.sleep(0)


@contextmanager
def waiting() -> Iterator[Coroutine[Any, Any, None]]:
    """A coroutine that waits."""
    coroutine = idle()
    coroutine.send(None)
    yield coroutine
    coroutine.close()


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.5])
def test_looking_stops_where_it_would_cost_too_much(seconds: float) -> None:
    """What walks may cost is a hundredth of a core, and saved up for a moment only."""
    moment = 0.0
    found = table(clock=lambda: moment + 0.01)  # what each walk takes
    looked = 0
    with waiting() as coroutine:
        for _ in range(1000):
            moment += 0.02
            looked += bool(found.look(coroutine, moment, seconds).stack)
    assert looked > 0
    assert found.spent == pytest.approx(looked * 0.01)
    assert found.spent <= 0.01 * moment + 0.05 + 0.01


def test_the_longest_waits_are_looked_at_first() -> None:
    """However many short ones there are, they leave what the few long ones need."""
    moment = 0.0
    found = table(clock=lambda: moment + 0.001)  # what each walk takes
    looked = {0.002: 0, 0.5: 0}
    with waiting() as coroutine:
        for _ in range(500):
            for seconds in (*[0.002] * 50, 0.5):
                moment += 0.004
                looked[seconds] += bool(found.look(coroutine, moment, seconds).stack)
    assert looked[0.5] == 500
    assert 0 < looked[0.002] < 0.1 * 500 * 50
    assert found.spent <= 0.01 * moment + 0.05


def test_waits_not_looked_at_are_counted_as_unknown() -> None:
    """Their seconds are not lost, their place is."""
    found = table()
    found.add("/", [Waited(0, Chain((), ""), "", True, 0.5)])
    (place,) = found.places.values()
    assert (place.seconds, place.count) == (0.5, 1)
    assert place.chain.stack == ()
    assert UNKNOWN.startswith("_")


def test_places_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound, waits of a route share one place, and are counted as folded."""
    monkeypatch.setattr(awaits, "_MOST_PLACES", 3)
    found = table()
    for number in range(10):
        found.add("/", [Waited(0, Chain((), f"leaf{number}"), "", True, 1.0)])
    assert len(found.places) == 4
    assert found.folded == 7
    assert sum(place.seconds for place in found.places.values()) == 10.0
