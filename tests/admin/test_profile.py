"""``/api/profile`` over real sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from loopscope import Loopscope, metrics_app
from loopscope.admin import profile
from loopscope.admin.profile import busiest
from loopscope.sentinel.pyspy import (
    FORMATS,
    SUFFIXES,
    Format,
    GoneError,
    NotAllowedError,
    PySpyError,
)
from tests.admin.test_listener import get, running
from tests.e2e.running import Running, eventually
from tests.e2e.test_workers import WORKERS, send, uvicorn
from tests.harness import Server, call
from tests.sentinel import targets


@pytest.fixture
def spinning() -> Iterator[None]:
    """A thread of this process' that is busy."""
    enough = threading.Event()

    def spin_in_test() -> None:
        while not enough.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin_in_test, name="spinner")
    thread.start()
    yield
    enough.set()
    thread.join()


Record = Callable[..., bytes]


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[[Record], None]:
    """Lets the test record in py-spy's place."""
    return lambda record: monkeypatch.setattr(profile, "record", record)


def failing(*errors: PySpyError) -> Record:
    """Raises one error after the other, and then has a profile."""
    left = list(errors)

    def record(pid: int, **_: Any) -> bytes:
        if left:
            raise left.pop(0)
        return b"a;b 1\n"

    return record


@targets.can_look
@pytest.mark.parametrize("format", FORMATS)
def test_a_worker_is_profiled_from_outside(spinning: None, format: Format) -> None:
    """By its own child, in every format, under a name to keep it by."""
    status, headers, body = get(running() + f"/api/profile?seconds=1&format={format}")
    assert status == 200, body
    assert b"spin_in_test" in body
    suffix = SUFFIXES[format]
    assert headers["content-disposition"].endswith(f'filename="profile-{os.getpid()}.{suffix}"')
    assert (
        headers["content-type"]
        == {
            "flamegraph": "image/svg+xml",
            "speedscope": "application/json",
            "folded": "text/plain; charset=utf-8",
        }[format]
    )
    if format == "speedscope":
        assert json.loads(body)["profiles"]


def test_figures_are_served_meanwhile(recorded: Callable[[Record], None]) -> None:
    """A profile keeps neither the loop nor the thread that figures are made in."""
    scraped = threading.Event()

    def record(pid: int, **_: Any) -> bytes:
        assert scraped.wait(30)
        return b"a;b 1\n"

    recorded(record)
    url = running()
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(get(url + "/api/profile")[0]))
    asking.start()
    assert eventually(lambda: bool(profile._ends))
    assert get(url + "/metrics")[0] == 200
    assert not answers
    scraped.set()
    asking.join()
    assert answers == [200]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("seconds=0", "seconds is '0'; allowed: whole numbers from 1 to 300"),
        ("seconds=301", "seconds is '301'; allowed: whole numbers from 1 to 300"),
        ("seconds=1.5", "seconds is '1.5'; allowed: whole numbers from 1 to 300"),
        ("format=pprof", "format is 'pprof'; allowed: flamegraph, speedscope, folded"),
        ("gil=yes", "gil is 'yes'; allowed: 0, 1"),
        ("idle=2", "idle is '2'; allowed: 0, 1"),
    ],
)
def test_a_bad_parameter_gets_a_sentence(query: str, sentence: str) -> None:
    """What is not understood is said, and nothing is recorded."""
    assert get(running() + f"/api/profile?{query}")[::2] == (400, f"{sentence}\n".encode())


@pytest.mark.parametrize("worker", [str(os.getppid()), "1", "-1", "all", ""])
def test_only_workers_are_looked_into(worker: str) -> None:
    """Whatever else runs on this machine is none of the reader's business."""
    status, _, body = get(running() + f"/api/profile?worker={worker}")
    sentence = f"'{worker}' is no worker of this service; there are: {os.getpid()}\n"
    assert (status, body.decode()) == (404, sentence)


def test_one_profile_at_a_time(recorded: Callable[[Record], None]) -> None:
    """A second question is told when to come back; the next after the first is answered."""
    enough = threading.Event()

    def record(pid: int, **_: Any) -> bytes:
        assert enough.wait(30)
        return b"a;b 1\n"

    recorded(record)
    url = running() + "/api/profile?format=folded"
    answers: list[int] = []
    first = threading.Thread(target=lambda: answers.append(get(url)[0]))
    first.start()
    assert eventually(lambda: bool(profile._ends))
    status, headers, body = get(url)
    assert status == 429
    assert 1 <= int(headers["retry-after"]) <= 5
    assert b"being recorded already; ask again in" in body
    enough.set()
    first.join()
    assert answers == [200]
    assert get(url)[0] == 200


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (NotAllowedError("the kernel refuses; grant SYS_PTRACE"), 503),
        (PySpyError("py-spy is not installed"), 503),
        (GoneError("process 7 has ended"), 404),
    ],
)
def test_what_could_not_be_done_is_said(
    recorded: Callable[[Record], None], error: PySpyError, status: int
) -> None:
    """With the words of whoever could not, and once only."""
    recorded(failing(error, error))
    url = running() + "/api/profile"
    assert get(url)[::2] == (status, f"{error}\n".encode())


def test_a_refused_child_is_allowed_by_its_parent(
    recorded: Callable[[Record], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the kernel lets ancestors only, the worker says that its children may as well."""
    allowed: list[int | None] = []

    def allow(pid: int | None) -> bool:
        allowed.append(pid)
        return True

    monkeypatch.setattr(profile, "allow_others_to_trace", allow)
    recorded(failing(NotAllowedError("ancestors only")))
    assert get(running() + "/api/profile")[0] == 200
    assert allowed == [os.getpid()]


def test_a_service_may_serve_it_itself(
    recorded: Callable[[Record], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it blocks the service's own loop, which our tests would not let pass."""
    recorded(failing())
    monkeypatch.setenv("LOOPSCOPE_TOKEN", "secret")
    token = (b"authorization", b"Bearer secret")

    async def ask() -> Server:
        app = Loopscope(Starlette(routes=[Mount("/ops", metrics_app())]))
        query = b"format=folded"
        return await call(app, "/ops/api/profile", query_string=query, headers=[token])

    answer = asyncio.run(ask())
    assert (answer.status, answer.body) == (200, b"a;b 1\n")


def test_a_token_guards_it() -> None:
    """A profile says what code a service runs."""
    assert get(running(token="secret") + "/api/profile")[0] == 401


def test_a_profile_nobody_waits_for_is_given_up(recorded: Callable[[Record], None]) -> None:
    """Whoever hangs up ends it, and the next may ask."""
    given_up = threading.Event()

    def record(pid: int, *, is_wanted: Callable[[], bool], **_: Any) -> bytes:
        while is_wanted():
            time.sleep(0.01)
        given_up.set()
        raise PySpyError("nobody waits")

    recorded(record)
    address = urlsplit(running())
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(b"GET /api/profile?seconds=300 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert eventually(lambda: bool(profile._ends))
    assert given_up.wait(30)
    assert eventually(lambda: not profile._ends)


def test_the_busiest_of_several_is_meant_unless_named(tmp_path: Path) -> None:
    """By whoever answers and is no worker; one that is gone uses nothing."""
    with (
        targets.running(targets.ASLEEP, tmp_path / "asleep.py") as asleep,
        targets.running(targets.BUSY, tmp_path / "busy.py") as busy,
        targets.running(targets.ASLEEP, tmp_path / "gone.py") as gone,
    ):
        gone.kill()
        gone.wait()
        assert busiest([gone.pid, asleep.pid, busy.pid]) == busy.pid
        assert busiest([asleep.pid]) == asleep.pid


@targets.can_look
@pytest.mark.skipif(not Path("/proc").exists(), reason="workers are found by /proc")
def test_every_worker_can_be_asked_for(tmp_path: Path) -> None:
    """Whichever of them answers; what they do when there is nothing to do is wait."""
    with Running(uvicorn, tmp_path / "log") as server:
        admin = f"http://127.0.0.1:{server.admin}"

        def known() -> list[int]:
            """The workers that have had a request, after one more."""
            send(server, 1, "/ready")
            status, _, body = get(admin + "/api/profile?worker=none")
            assert status == 404
            return [int(pid) for pid in body.partition(b": ")[2].split(b", ")]

        assert eventually(lambda: len(known()) == WORKERS)
        for pid in known():
            query = f"/api/profile?seconds=1&idle=1&format=folded&worker={pid}"
            status, headers, body = get(admin + query)
            assert (status, b"uvicorn/server.py" in body) == (200, True), body
            assert f"profile-{pid}.folded" in headers["content-disposition"]
        assert get(admin + f"/api/profile?worker={os.getpid()}")[0] == 404
