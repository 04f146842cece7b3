"""Services without a line of ours, under ``loopscope run``: measured as if the line were there."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.running import OUTCOMES, ROOT, Command, Running
from tests.e2e.test_servers import SERVERS as ALONE
from tests.e2e.test_servers import bare_exit_code, exit_code
from tests.e2e.test_workers import (
    WORKERS,
    granian,
    gunicorn,
    gunicorn_preloaded,
    hypercorn,
    send,
    uvicorn,
)

pytestmark = [
    pytest.mark.skipif(not Path("/proc").exists(), reason="workers are found by /proc"),
    pytest.mark.real_time,
]


def gunicorn_alone(port: int) -> list[str]:
    """With its own ASGI worker."""
    return gunicorn(port, "-k", "asgi")


def program(port: int) -> list[str]:
    """That calls ``uvicorn.run``."""
    return [sys.executable, "tests/e2e/main.py", str(port), str(WORKERS)]


def under_run(command: Callable[[int], list[str]]) -> Command:
    run = [sys.executable, "-m", "loopscope", "run", "--"]
    return lambda port: [*run, *command(port)]


SERVERS = (uvicorn, gunicorn, gunicorn_preloaded, gunicorn_alone, hypercorn, granian, program)


@pytest.fixture(params=SERVERS, ids=lambda command: command.__name__)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """Whose service has no middleware of its own."""
    path = [str(ROOT), os.environ.get("PYTHONPATH", "")]  # a program has its own folder alone there
    environ = {"BARE": "1", "PYTHONPATH": os.pathsep.join(filter(None, path))}
    with Running(under_run(request.param), tmp_path / "log", **environ) as running:
        yield running


def test_every_worker_is_measured(server: Running) -> None:
    """Each request is counted once, under its route; scrapes are none."""
    send(server, 60, "/items/1")
    assert server.becomes(60, OUTCOMES, http_route="/items/{item}", outcome="ok")
    assert server.becomes(WORKERS, "loopscope_workers")
    assert server.published(OUTCOMES, http_route="/metrics") == 0
    assert "loopscope run" not in server.said


@pytest.mark.parametrize("command", ALONE)
def test_sigterm_ends_a_server_as_it_always_did(
    command: Callable[[int], list[str]], tmp_path: Path
) -> None:
    """In good time, with the exit code it has without us, and with nobody left behind."""
    measured = exit_code(under_run(command), tmp_path / "log", BARE="1")
    assert measured == bare_exit_code(command)


def test_a_service_with_the_middleware_is_measured_once(tmp_path: Path) -> None:
    """Nothing is counted twice."""
    with Running(under_run(uvicorn), tmp_path / "log") as server:
        send(server, 20, "/items/1")
        assert server.becomes(20, OUTCOMES, http_route="/items/{item}")


def test_switched_off_a_service_is_what_it_was(tmp_path: Path) -> None:
    """Nothing listens."""
    off = {"BARE": "1", "LOOPSCOPE_ENABLED": "0"}
    with Running(under_run(uvicorn), tmp_path / "log", **off) as server:
        send(server, 3, "/items/1")
        listening = [
            each.laddr.port for worker in server.workers for each in worker.net_connections("tcp")
        ]
        assert server.admin not in listening
