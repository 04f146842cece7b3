"""A process with a running agent forks: parent and child each go on with figures of their own."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from loopscope import Loopscope
from loopscope.admin.listener import AdminListener
from loopscope.agent import current_agent, stop_agent
from loopscope.core.page import PageReader, read_file
from tests.harness import call, published

OUTCOMES = "loopscope_request_outcomes_total"

# Python 3.12 and later warn of forks while there are threads, which is what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def measure(app: Loopscope, requests: int = 1) -> float:
    """Send ``requests`` through ``app``; how many are published then."""

    async def send_all() -> None:
        for _ in range(requests):
            await call(app)

    asyncio.run(send_all())
    return published(OUTCOMES)


def in_child(body: Callable[[], object]) -> str:
    """What ``body`` returns in a forked child, as text; whatever it does, the child ends there."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(theirs, str(body()).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as said:
        answer = said.read()
    os.waitpid(pid, 0)
    return answer


@pytest.fixture
def unchanging() -> Iterator[None]:
    """No collection in this process, whose hook would write into its page."""
    gc.disable()
    yield
    gc.enable()


def own_page() -> Path:
    agent = current_agent()
    assert agent is not None and agent.page.path is not None
    return agent.page.path


def send_watchdog_home() -> None:
    """Nobody is to write into this process' page unasked."""
    agent = current_agent()
    assert agent is not None
    agent.watchdog.stop()


def listener() -> AdminListener:
    agent = current_agent()
    assert agent is not None and isinstance(agent._front, AdminListener)
    return agent._front


def test_a_child_counts_from_zero_and_its_parent_goes_on() -> None:
    """The child's figures are what it measured itself; the parent's do not know of it."""
    app = Loopscope(hello)
    assert measure(app, 3) == 3
    assert in_child(lambda: measure(app, 2)) == "2.0"
    assert measure(app) == 4


@pytest.mark.quiet_faults
def test_a_fault_in_a_child_is_counted_by_the_child() -> None:
    """A middleware that has served the parent reports to the agent of the process it is in."""

    class Broken:
        def __getattr__(self, name: str) -> object:
            raise RuntimeError("on purpose")

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = Broken()
        await hello(scope, receive, send)

    def faults() -> float:
        measure(app)
        return published("loopscope_agent_errors_total", part="routes")

    app = Loopscope(breaks)
    assert faults() == 1
    assert in_child(faults) == "1.0"


def test_a_child_that_measures_nothing_runs_no_agent() -> None:
    """A forked helper (a pool's process, say) has neither agent nor collector hook of ours."""
    measure(Loopscope(hello))
    hooks = len(gc.callbacks)
    assert in_child(lambda: (current_agent(), hooks - len(gc.callbacks))) == "(None, 1)"
    assert len(gc.callbacks) == hooks


def test_a_child_that_measures_nothing_warns_without_us() -> None:
    """The hook for coroutines never awaited is the parent's, which keeps it."""

    def whose() -> str:
        return str(getattr(warnings, "_warn_unawaited_coroutine").__module__)  # noqa: B009

    measure(Loopscope(hello))
    assert in_child(whose) == "warnings"
    assert whose() == "loopscope.sources.tasks"


@pytest.mark.usefixtures("unchanging")
def test_a_child_does_not_write_into_its_parents_page(tmp_path: Path) -> None:
    """The child measures, collects garbage, stops: not one byte of the parent's page moves."""
    app = Loopscope(hello, directory=tmp_path)
    measure(app)
    send_watchdog_home()
    page = own_page()
    before = read_file(page)

    def live_a_life() -> str:
        measure(app)
        gc.collect()
        path = own_page()
        stop_agent()
        return path.name

    assert in_child(live_a_life) not in ("", page.name)
    assert read_file(page) == before


@pytest.mark.usefixtures("unchanging")
@pytest.mark.blocking_allowed  # the test itself reads the page, in the request
def test_a_request_under_way_at_the_fork_is_its_parents(tmp_path: Path) -> None:
    """Both processes see it to its end; only the one whose page it is counts it."""
    left_behind = ""

    async def forks(scope: Any, receive: Any, send: Any) -> None:
        nonlocal left_behind

        if scope["path"] == "/fork":
            before = read_file(page)
            child = os.fork()
            if child:
                os.waitpid(child, 0)
                left_behind = f"{read_file(page) == before}"
        await hello(scope, receive, send)

    app = Loopscope(forks, directory=tmp_path)

    async def serve() -> None:
        parent = os.getpid()
        try:
            await call(app, "/fork")
        finally:
            if os.getpid() != parent:
                os._exit(0)

    measure(app)
    send_watchdog_home()
    page = own_page()
    asyncio.run(serve())
    assert left_behind == "True"
    assert published(OUTCOMES) == 2


def test_an_application_that_ends_in_a_child_stops_nothing_of_its_parents(tmp_path: Path) -> None:
    """Shutdown of the lifespan a child was forked in leaves page and port of the parent open."""
    app = Loopscope(hello, directory=tmp_path, listen="127.0.0.1:0")
    measure(app)
    agent, page, url = current_agent(), own_page(), listener().url
    assert agent is not None
    agent.enter()
    assert in_child(agent.leave) == "None"
    assert not PageReader().update(read_file(page)).closed
    with urlopen(f"{url}/healthz", timeout=10) as response:
        assert response.status == 200


def test_a_child_lets_go_of_its_parents_port() -> None:
    """The parent can close its port, and open it again, while a child lives on."""
    measure(Loopscope(hello, listen="127.0.0.1:0"))
    port = int(listener().url.rpartition(":")[2])
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        theirs.send(b".")  # is there,
        theirs.recv(1)  # and stays until the parent lets go
        os._exit(0)
    theirs.close()
    with ours:
        ours.recv(1)
        stop_agent()
        socket.create_server(("127.0.0.1", port)).close()
    os.waitpid(pid, 0)


def test_a_child_has_a_listener_of_its_own() -> None:
    """Where the port is any free one, parent and child can both be scraped."""
    app = Loopscope(hello, listen="127.0.0.1:0")
    measure(app)
    url = listener().url

    def scrape_both() -> str:
        measure(app)
        for each in (url, listener().url):
            urlopen(f"{each}/metrics", timeout=10).close()
        return str(listener().url != url)

    assert in_child(scrape_both) == "True"
