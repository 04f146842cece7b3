"""The servers people run beside plain uvicorn: each is told the truth about, none is disturbed."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import urlopen

import psutil
import pytest
from websockets.sync.client import connect

from tests.e2e.running import (
    OUTCOMES,
    PATIENCE,
    Command,
    Running,
    eventually,
    has_ended,
    send_and_leave,
)

pytestmark = pytest.mark.real_time

APP = "tests.e2e.service:app"
DURATIONS = "http_server_request_duration_seconds_count"


def gunicorn(port: int, *options: str) -> list[str]:
    worker = "uvicorn_worker.UvicornWorker"
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "-k", worker]
    return [*command, "--no-control-socket", *options, APP]


def gunicorn_alone(port: int) -> list[str]:
    """With its own ASGI worker, which cancels the app a while after the client has left."""
    return gunicorn(port, "-k", "asgi", "--asgi-disconnect-grace-period", "1")


def hypercorn(port: int) -> list[str]:
    return [sys.executable, "-m", "hypercorn", "--bind", f"127.0.0.1:{port}", APP]


def granian(port: int) -> list[str]:
    return [sys.executable, "-m", "granian", "--interface", "asgi", "--port", str(port), APP]


SERVERS = (gunicorn, gunicorn_alone, hypercorn, granian)


@pytest.fixture(scope="module", params=SERVERS, ids=lambda command: command.__name__)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """One server for several tests; each has a route of its own."""
    with Running(request.param, tmp_path_factory.mktemp("server") / "log") as running:
        assert running.becomes(1, OUTCOMES, http_route="/ready")
        yield running


@pytest.fixture
def server(shared: Running) -> Running:
    """The server, whose figures begin with the test, or with another try of it."""
    shared.count_from_here()
    return shared


def test_every_request_is_counted_exactly_on_its_route(server: Running) -> None:
    """What the client sent and what is published is the same number, under the route's template."""
    for number in range(100):
        assert server.client.get(f"/items/{number}").text == str(number)
    assert server.becomes(100, OUTCOMES, http_route="/items/{item}", outcome="ok")
    assert server.published(DURATIONS, http_route="/items/{item}") == 100


def test_an_exception_is_an_error_with_status_500(server: Running) -> None:
    """The server answers 500 for an app that raised, and that is what is published."""
    assert server.client.get("/fail").status_code == 500
    assert server.becomes(1, OUTCOMES, http_route="/fail", outcome="error")
    error = {"http_response_status_code": "500", "error_type": "LookupError"}
    assert server.published(DURATIONS, http_route="/fail", **error) == 1


def test_a_client_that_leaves_a_stream_is_seen_to_leave(server: Running) -> None:
    """Whichever way a server has of saying so, a truncated stream is no clean 200."""
    send_and_leave(server.port, "/stream", read=10)
    left = "client_disconnected_mid_stream"
    assert server.becomes(1, OUTCOMES, http_route="/stream", outcome=left)
    assert server.published(OUTCOMES, http_route="/stream") == 1


def test_an_app_that_never_asks_streams_into_the_void(
    server: Running, request: pytest.FixtureRequest
) -> None:
    """That is no clean 200 either, unless the server (granian) tells only those who ask."""
    send_and_leave(server.port, "/deaf", read=10)
    outcome = "ok" if "granian" in request.node.name else "client_disconnected_mid_stream"
    assert server.becomes(1, OUTCOMES, http_route="/deaf", outcome=outcome)


def test_a_stream_read_to_its_end_is_ok(server: Running) -> None:
    """A client that stays until the last byte has not left, whatever is closed after that."""
    assert len(server.client.get("/items/1/long").content) == 1000
    assert server.becomes(1, OUTCOMES, http_route="/items/{item}/long", outcome="ok")


def test_a_websocket_session_is_counted(server: Running) -> None:
    """One session with its messages both ways, ended by the client."""
    with connect(f"ws://127.0.0.1:{server.port}/echo") as session:
        for text in ("one", "two"):
            session.send(text)
            assert session.recv(PATIENCE) == text
    echo = {"http_route": "/echo"}
    assert server.becomes(1, "loopscope_websocket_duration_seconds_count", **echo)
    assert server.published("loopscope_websocket_messages_total", **echo) == 4
    assert server.published("loopscope_websocket_closes_total", **echo, initiator="client") == 1


def exit_code(command: Command, log: Path, **environ: str) -> int:
    """How a server that has served ends on SIGTERM, when it leaves no process behind."""
    with Running(command, log, **environ) as server:
        if not environ:
            assert server.becomes(1, OUTCOMES)
        workers = server.workers
        code = server.stop()
        assert eventually(lambda: all(map(has_ended, workers)))
        return code


@functools.cache
def bare_exit_code(command: Command) -> int:
    """How it ends with an application that is not measured."""
    with TemporaryDirectory() as folder:
        return exit_code(command, Path(folder, "log"), BARE="1")


@pytest.mark.parametrize("command", SERVERS)
def test_sigterm_ends_a_server_as_it_always_did(command: Command, tmp_path: Path) -> None:
    """In good time, with the exit code it has without loopscope, and with nobody left behind."""
    assert exit_code(command, tmp_path / "log") == bare_exit_code(command)


def listens(process: psutil.Process, port: int) -> bool:
    return any(each.laddr.port == port for each in process.net_connections("tcp4") if each.laddr)


def test_workers_of_a_preloaded_app_each_start_afresh(tmp_path: Path) -> None:
    """An app imported before the fork is measured by its worker, and by that one's successor.

    What the first had counted is not lost with it.
    """
    with Running(lambda port: gunicorn(port, "--preload"), tmp_path / "log") as server:
        assert server.becomes(1, OUTCOMES, http_route="/ready", outcome="ok")
        (first,) = server.workers
        assert listens(first, server.admin)
        assert not listens(psutil.Process(server.process.pid), server.admin)
        first.kill()
        assert eventually(lambda: server.workers not in ([], [first]))
        server.client.close()
        for _ in range(3):
            urlopen(f"http://127.0.0.1:{server.port}/ready", timeout=PATIENCE).close()
        assert server.becomes(1 + 3, OUTCOMES, http_route="/ready", outcome="ok")


def test_a_second_worker_without_a_port_serves_all_the_same(tmp_path: Path) -> None:
    """Two workers, one port for figures: one speaks for both, and both answer every request."""
    with Running(lambda port: gunicorn(port, "--workers", "2"), tmp_path / "log") as server:
        assert eventually(lambda: len(server.workers) == 2)
        for other in server.workers:
            other.suspend()
            for _ in range(20):
                with urlopen(f"http://127.0.0.1:{server.port}/ready", timeout=PATIENCE) as answer:
                    assert answer.status == 200
            other.resume()
        assert server.becomes(2, "loopscope_workers")
        assert server.stop() == 0
        assert "cannot listen on" not in server.said
