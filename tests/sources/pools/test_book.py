"""What is published of pools, whichever library's: by a pool that stands for all of them."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.admin.figures import of_worker
from loopscope.agent import Agent, current_agent
from loopscope.core.clock import FakeTime
from loopscope.core.faults import Faults
from loopscope.core.page import Page
from loopscope.core.stacks import UserCode
from loopscope.sources.pools import book as books
from loopscope.sources.pools import metrics
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.meter import Level, Meter
from tests.harness import call, label_sets, published

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]


class Shelf:
    """A pool of two things."""

    def __init__(self, things: int = 2) -> None:
        self.free = asyncio.Semaphore(things)


def level(shelf: Shelf) -> Level:
    return Level(capacity=2.0)


def agent() -> Agent:
    found = current_agent()
    assert found is not None
    return found


def meter(shelf: Shelf, name: str = "shelf") -> Meter:
    return agent().pools.book.meter(shelf, name, "db.test", level)


def figure(name: str, **labels: str) -> float:
    return published(f"loopscope_pool_{name}", kind="db.test", **labels)


class Time:
    """A book whose time stands still until it is moved, and what it has put down."""

    def __init__(self, **settings: Any) -> None:
        self.time = FakeTime()
        self.page = Page.anonymous(self.time.clock(), capacity=1 << 20)
        self.leaks: list[Any] = []
        self.book = PoolBook(
            self.page,
            self.time.clock().now,
            UserCode(),
            Faults(),
            leak_after=60.0,
            on_leak=self.leaks.append,
        )


async def test_seconds_of_use_and_waiting_are_mean_numbers() -> None:
    """Little's law: the sums of all uses and waits are the areas under in use and pending."""
    shelf = Shelf()
    done = Loopscope(Starlette(routes=[Route("/", lambda _: PlainTextResponse("hello"))]))
    await call(done)
    pool = meter(shelf)
    loop = asyncio.get_running_loop()
    area = {"in_use": 0.0, "pending": 0.0}

    async def user() -> None:
        use = pool.ask(is_phase=False)
        async with shelf.free:
            use.got()
            await asyncio.sleep(0.02)
        use.release()

    async def watch() -> None:
        before = loop.time()
        while True:
            await asyncio.sleep(0.001)
            now = loop.time()
            area["in_use"] += (now - before) * len(pool.held)
            area["pending"] += (now - before) * len(pool.waiting)
            before = now

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(user() for _ in range(20)))
    watching.cancel()
    assert figure("use_seconds_sum") == pytest.approx(area["in_use"], rel=0.1)
    assert figure("wait_seconds_sum") == pytest.approx(area["pending"], rel=0.1)
    assert area["pending"] > area["in_use"]


async def test_the_seconds_of_a_route_are_those_of_its_requests() -> None:
    """Whoever asks within a request asks for that request's route."""
    shelf = Shelf()

    async def endpoint(request: Request) -> Response:
        use = meter(shelf).ask(is_phase=False)
        use.got()
        await asyncio.sleep(0.01)
        use.release()
        return PlainTextResponse("done")

    app = Loopscope(Starlette(routes=[Route("/{which}", endpoint)]))
    await call(app, "/first")
    assert figure("route_use_seconds_total", http_route="/{which}") >= 0.01


async def test_what_a_request_leaves_behind_is_a_leak(caplog: pytest.LogCaptureFixture) -> None:
    """A second after its end: counted, logged with the line that took it, listed by the API."""
    shelf = Shelf()
    uses: list[Any] = []

    async def endpoint(request: Request) -> Response:
        use = meter(shelf).ask(is_phase=False)
        use.got()
        uses.append(use)
        return PlainTextResponse("done")

    app = Loopscope(Starlette(routes=[Route("/forgetful", endpoint)]))
    await call(app, "/forgetful")
    book = agent().pools.book
    assert figure("leaked", reason="request_ended") == 0
    book.now = lambda: agent().clock.now() + 1.5
    assert figure("leaked", reason="request_ended") == 0  # it may yet be given back
    with caplog.at_level(logging.WARNING, "loopscope"):
        book.now = lambda: agent().clock.now() + 3.0
        assert figure("leaked", reason="request_ended") == 1
        assert figure("leaked", reason="request_ended") == 1
    (line,) = caplog.messages
    assert "taken by /forgetful at tests/sources/pools/test_book.py:" in line
    assert "request has ended" in line
    listed = (await asyncio.to_thread(of_worker(agent()).pools))["pools"]
    (pool,) = [each for each in listed if each["kind"] == "db.test"]
    (held,) = pool["held"]
    assert (held["route"], held["leaked"]) == ("/forgetful", "request_ended")
    assert held["site"].endswith(" test_what_a_request_leaves_behind_is_a_leak.<locals>.endpoint")
    uses[0].release()
    assert figure("leaked", reason="request_ended") == figure("in_use") == 0


async def test_a_leak_does_not_keep_its_request() -> None:
    """Of the request that has ended, only the route is kept."""
    shelf = Shelf()
    kept: list[Any] = []

    async def endpoint(request: Request) -> Response:
        use = meter(shelf).ask(is_phase=False)
        use.got()
        kept.append(use)
        return PlainTextResponse("done")

    app = Loopscope(Starlette(routes=[Route("/forgetful", endpoint)]))
    await call(app, "/forgetful")
    (use,) = kept
    assert not isinstance(use.owner, str)
    agent().pools.book.now = lambda: agent().clock.now() + 1.5
    agent().pools.book.refresh()
    assert use.owner == "/forgetful"


def test_what_is_held_for_too_long_is_a_leak() -> None:
    """Outside of requests too: from the setting on, said once, until it is given back."""
    there = Time()
    shelf = object.__new__(Shelf)
    pool = there.book.meter(shelf, "shelf", "db.test", lambda _: Level())
    use = pool.ask()
    use.got()
    there.time.advance(59.0)
    there.book.refresh()
    assert not there.leaks
    there.time.advance(2.0)
    there.book.refresh()
    there.book.refresh()
    (leak,) = there.leaks
    assert (leak.pool, leak.reason, leak.held_s) == ("shelf", "held_too_long", 61.0)
    assert leak.site.endswith(" test_what_is_held_for_too_long_is_a_leak")


def test_a_pool_that_is_gone_takes_what_was_held_with_it() -> None:
    """Nothing can be given back to it any more; it is forgotten, and its name is free."""
    there = Time()
    shelf = object.__new__(Shelf)
    pool = there.book.meter(shelf, "shelf", "db.test", lambda _: Level())
    pool.ask().got()
    del shelf
    gc.collect()
    there.book.refresh()
    assert not there.book.held()
    other = object.__new__(Shelf)
    assert there.book.meter(other, "shelf", "db.test", lambda _: Level()).labels[0] == "shelf"


def test_pools_of_one_name_are_told_apart_up_to_a_number() -> None:
    """Clients made per request do not become a label each: from the fifth on they are one."""
    there = Time()
    shelves = [object.__new__(Shelf) for _ in range(10)]
    made = [there.book.meter(shelf, "db", "db.test", lambda _: Level(3.0)) for shelf in shelves]
    names = [pool.labels[0] for pool in made]
    assert names == ["db", "db #2", "db #3", "db #4", *["db #5+"] * 6]


@pytest.mark.quiet_faults
def test_a_pool_that_cannot_be_read_is_no_trouble_to_the_others() -> None:
    """Its own gauges are missing, and the fault is counted."""
    there = Time()
    shelves = [object.__new__(Shelf) for _ in range(2)]

    def broken(_: Shelf) -> Level:
        raise RuntimeError

    there.book.meter(shelves[0], "broken", "db.test", broken)
    whole = there.book.meter(shelves[1], "whole", "db.test", lambda _: Level(3.0))
    whole.ask().got()
    there.book.refresh()
    shown = there.book._shown  # noqa: SLF001
    assert shown[metrics.IN_USE, whole.labels] == 1
    assert shown[metrics.CAPACITY, whole.labels] == 3


def test_what_nobody_reads_is_lost_by_count_not_by_memory() -> None:
    """The queue of what is over has a bound; what does not fit is counted."""
    there = Time()
    there.book.most_events = 10
    pool = there.book.watch("shelf", "db.test", Level)
    for _ in range(20):
        pool.over("use", 0.1, "")
    assert (len(there.book.events), there.book.lost) == (10, 10)
    there.book.fold()
    assert not there.book.events


def test_each_use_has_room_for_its_wait_and_its_end() -> None:
    """Waits and uses have bounds of their own, which neither takes from the other."""
    there = Time()
    there.book.most_events = 10
    pool = there.book.watch("shelf", "db.test", Level)
    for _ in range(12):
        use = pool.ask()
        use.got()
        use.release()
    assert (len(there.book.waits), len(there.book.uses), there.book.lost) == (10, 10, 4)
    there.book.fold(4)
    assert (len(there.book.waits), len(there.book.uses)) == (6, 6)


def test_what_was_taken_before_a_fault_is_published() -> None:
    """One event whose route cannot be told takes none of the others with it."""
    there = Time()
    pool = there.book.watch("shelf", "db.test", Level)
    nobody: Any = object()  # without a route
    pool.over("use", 1.0, "/")
    pool.over("use", 1.0, nobody)
    pool.over("use", 1.0, "/")
    with pytest.raises(AttributeError):
        there.book.fold()
    there.book.fold()
    key = metrics.ROUTE_USE, (*pool.labels, "/")
    assert there.book._numbers.known[key].value == 2.0  # noqa: SLF001


def test_routes_and_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound they are folded into one."""
    monkeypatch.setattr(books, "MOST_ROUTES", 3)
    there = Time()
    pool = there.book.watch("shelf", "db.test", Level)
    for number in range(10):
        pool.over("use", 1.0, f"/{number}")
    there.book.refresh()
    routes = [
        labels[2]
        for metric, labels in there.book._numbers.known  # noqa: SLF001
        if metric is metrics.ROUTE_USE
    ]
    assert routes == ["/0", "/1", "/2", "_OVERFLOW"]


async def test_new_connections_have_a_route_and_a_line() -> None:
    """Who had them made, counted by both: a connection a request is plain to see."""
    shelf = Shelf()

    async def endpoint(request: Request) -> Response:
        meter(shelf).opened(0.002)
        return PlainTextResponse("done")

    app = Loopscope(Starlette(routes=[Route("/churn", endpoint)]))
    for _ in range(3):
        await call(app, "/churn")
    (labels,) = {
        (labels["http_route"], labels["site"])
        for labels in label_sets("loopscope_pool_creations_total")
    }
    assert labels[0] == "/churn"
    assert labels[1].startswith("tests/sources/pools/test_book.py:")
    assert figure("creations_total", site=labels[1], http_route="/churn") == 3


async def test_database_pools_have_the_names_of_the_conventions_as_well() -> None:
    """The same figures as ``db.client.connection.*``; pools of other kinds have not."""
    shelf = Shelf()
    app = Loopscope(Starlette(routes=[Route("/", lambda _: PlainTextResponse("hello"))]))
    await call(app)
    pool = meter(shelf)
    agent().pools.book.meter(shelf, "cache", "cache.test", level)
    use = pool.ask()
    use.got()
    pool.ask().failed(TimeoutError())
    name = {"db_client_connection_pool_name": "shelf"}
    assert published("db_client_connection_max", **name) == 2
    used = {"db_client_connection_state": "used"}
    assert published("db_client_connection_count", **name, **used) == 1
    assert published("db_client_connection_timeouts_total", **name) == 1
    assert published("db_client_connection_wait_time_seconds_count", **name) == 1
    use.release()
    assert published("db_client_connection_use_time_seconds_count", **name) == 1
    assert label_sets("db_client_connection_max") == [name]


async def test_the_watchdog_folds_what_is_over() -> None:
    """Nothing waits for a scrape: without one, what is over leaves the queue all the same."""
    app = Loopscope(Starlette(routes=[Route("/", lambda _: PlainTextResponse("hello"))]))
    await call(app)
    book = agent().pools.book
    pool = book.watch("shelf", "db.test", Level)
    pool.over("use", 0.1, "")
    for _ in range(200):
        if not book.events:
            break
        await asyncio.sleep(0.02)
    assert not book.events
