"""Several workers of one application: one of them speaks for all, correct to the last request."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import psutil
import pytest

from tests.e2e.running import OUTCOMES, PATIENCE, Running, eventually

APP = "tests.e2e.service:app"
WORKERS = 3
pytestmark = [
    pytest.mark.skipif(not Path("/proc").exists(), reason="workers are found by /proc"),
    pytest.mark.real_time,
]


def gunicorn(port: int, *options: str) -> list[str]:
    bind = ["--bind", f"127.0.0.1:{port}", "-k", "uvicorn_worker.UvicornWorker"]
    several = ["--workers", str(WORKERS), "--no-control-socket"]
    return [sys.executable, "-m", "gunicorn", *bind, *several, *options, APP]


def gunicorn_preloaded(port: int) -> list[str]:
    return gunicorn(port, "--preload")


def gunicorn_recycling(port: int) -> list[str]:
    return gunicorn(port, "--max-requests", "40", "--max-requests-jitter", "20")


def uvicorn(port: int) -> list[str]:
    return [
        sys.executable, "-m", "uvicorn", "--port", str(port), "--workers", str(WORKERS),
        "--log-level", "warning", APP,
    ]  # fmt: skip


def hypercorn(port: int) -> list[str]:
    bind = ["--bind", f"127.0.0.1:{port}", "--workers", str(WORKERS)]
    return [sys.executable, "-m", "hypercorn", *bind, APP]


def granian(port: int) -> list[str]:
    several = ["--port", str(port), "--workers", str(WORKERS)]
    return [sys.executable, "-m", "granian", "--interface", "asgi", *several, APP]


ISOLATED = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
"""Begins the command line of what is to be process 1."""


def can_isolate() -> bool:
    """Whether this machine lets us be process 1 somewhere."""
    try:
        return subprocess.run([*ISOLATED, "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


SERVERS = (gunicorn, gunicorn_preloaded, gunicorn_recycling, uvicorn, hypercorn, granian)


@pytest.fixture(params=SERVERS, ids=lambda command: command.__name__)
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    temporary = tmp_path_factory.mktemp("server")
    with Running(request.param, temporary / "log", TMPDIR=str(temporary)) as running:
        yield running


def send(server: Running, count: int, path: str) -> None:
    """So many requests, each over a connection of its own: any worker may get it."""
    for _ in range(count):
        assert eventually(lambda: is_answered(server.port, path))


def is_answered(port: int, path: str) -> bool:
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (ConnectionError, HTTPException):  # a worker that is just being replaced
        return False
    finally:
        connection.close()


def speaker(server: Running) -> psutil.Process:
    """The worker that has the port for figures."""
    (found,) = [worker for worker in server.workers if server.admin in listening_ports(worker)]
    return found


def listening_ports(worker: psutil.Process) -> list[int]:
    try:
        connections = worker.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN]


def test_one_worker_speaks_for_all(server: Running) -> None:
    """Whichever worker served a request, it is in the one answer; workers are told apart."""
    send(server, 150, "/items/1")
    assert server.becomes(150, OUTCOMES, http_route="/items/{item}")
    assert server.becomes(WORKERS, "loopscope_workers")


def test_another_takes_over_and_nothing_is_lost(tmp_path: Path) -> None:
    """A worker that speaks for all is killed: the next one does, with all that was counted."""
    with Running(gunicorn, tmp_path / "log", TMPDIR=str(tmp_path)) as server:
        send(server, 60, "/items/1")
        assert server.becomes(60, OUTCOMES, http_route="/items/{item}")
        for killed in (1, 2):
            before = speaker(server)
            before.send_signal(signal.SIGKILL)
            assert eventually(lambda before=before: speaks_again(server, before.pid))  # type: ignore[misc]
            send(server, 20, "/items/1")
            assert server.becomes(60 + 20 * killed, OUTCOMES, http_route="/items/{item}")
            assert server.becomes(killed, "loopscope_worker_ends_total", how="killed")
        assert server.becomes(WORKERS, "loopscope_workers")
        pages = list(tmp_path.glob("loopscope-*/*/*.page"))
        assert len(pages) == WORKERS


def speaks_again(server: Running, before: int) -> bool:
    try:
        return speaker(server).pid != before
    except ValueError:
        return False


@contextmanager
def frozen(workers: Iterable[psutil.Process]) -> Iterator[None]:
    """None of them gets to run."""
    with ExitStack() as stack:
        for worker in workers:
            worker.suspend()
            stack.callback(worker.resume)
        yield


def test_requests_in_flight_are_those_of_all_workers(tmp_path: Path) -> None:
    """Whoever answers lists what the others are at, each by its worker's number."""
    with (
        Running(gunicorn, tmp_path / "log", TMPDIR=str(tmp_path)) as server,
        ExitStack() as streams,
    ):
        assert eventually(lambda: len(server.workers) == WORKERS)
        for worker in server.workers:  # an idle server's first worker would get them all
            with frozen(other for other in server.workers if other != worker):
                connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
                streams.callback(connection.close)
                connection.request("GET", "/stream")
                assert connection.getresponse().status == 200
        requests = server.scraper.get("/api/requests").json()["requests"]
        found = {each["worker"] for each in requests if each["route"] == "/stream"}
        assert found == {str(worker.pid) for worker in server.workers}


def test_a_frozen_worker_is_named_silent_by_the_others(tmp_path: Path) -> None:
    """The one that has the port goes on answering, and misses nobody once all run again."""
    with Running(gunicorn, tmp_path / "log", TMPDIR=str(tmp_path)) as server:
        send(server, 60, "/items/1")
        assert server.becomes(WORKERS, "loopscope_workers")
        answers = speaker(server).pid
        other = next(worker for worker in server.workers if worker.pid != answers)

        def silent() -> list[str]:
            found: list[str] = server.scraper.get("/api/requests").json()["silent"]
            return found

        assert eventually(lambda: silent() == [])
        with frozen([other]):
            assert eventually(lambda: silent() == [str(other.pid)])
            assert server.becomes(60, OUTCOMES, http_route="/items/{item}")
        assert eventually(lambda: silent() == [])
    assert not list(tmp_path.glob("loopscope-*/*/*.sock"))


@pytest.mark.skipif(not can_isolate(), reason="needs the right to make namespaces")
def test_the_first_process_of_a_container_has_workers_too(tmp_path: Path) -> None:
    """A server that is process 1 is the parent of a group like any other."""

    def contained(port: int) -> list[str]:
        return [*ISOLATED, *gunicorn(port)]

    with Running(contained, tmp_path / "log", TMPDIR=str(tmp_path)) as server:
        send(server, 30, "/items/1")
        assert server.becomes(30, OUTCOMES, http_route="/items/{item}")
        assert server.becomes(WORKERS, "loopscope_workers")
        server.process.kill()  # it does not pass on gentler signals
    (home,) = tmp_path.glob("loopscope-*/*")
    assert home.name.startswith("1-")


def test_services_started_side_by_side_share_nothing(tmp_path: Path) -> None:
    """They have a parent in common, but no listening socket."""

    def alone(port: int) -> list[str]:
        return [sys.executable, "tests/e2e/service.py", str(port), "asyncio"]

    with (
        Running(alone, tmp_path / "one", TMPDIR=str(tmp_path)) as one,
        Running(alone, tmp_path / "two", TMPDIR=str(tmp_path)) as two,
    ):
        send(one, 3, "/items/1")
        assert one.becomes(3, OUTCOMES, http_route="/items/{item}")
        assert two.published(OUTCOMES, http_route="/items/{item}") == 0
        assert not list(tmp_path.glob("loopscope-*"))
