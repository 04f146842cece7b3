"""Workers and their sentinel: it serves, it sees who hangs, and it is there as long as they are."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.running import OUTCOMES, Command, Running, eventually, has_ended
from tests.e2e.test_run import under_run
from tests.e2e.test_workers import WORKERS, gunicorn, gunicorn_recycling, listening_ports, send

pytestmark = [
    pytest.mark.skipif(not Path("/proc").exists(), reason="workers are found by /proc"),
    pytest.mark.real_time,
]
STALLS = "asyncio_eventloop_stalls_total"
IN_PROGRESS = "asyncio_eventloop_stall_in_progress_seconds"


def alone(port: int) -> list[str]:
    """One process, with neither siblings nor a server above it."""
    return [sys.executable, "tests/e2e/service.py", str(port), "uvloop"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Several workers; tests may kill them, or their sentinel, for both are replaced."""
    with Running(
        gunicorn, tmp_path_factory.mktemp("server") / "log", LOOPSCOPE_SENTINEL="1"
    ) as running:
        yield running


def ask_and_leave_open(port: int, path: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection


def stalls(server: Running, **expected: Any) -> list[dict[str, Any]]:
    """Those that are what is expected."""
    found: list[dict[str, Any]] = server.scraper.get("/api/stalls?limit=1000").json()["stalls"]
    return [stall for stall in found if expected.items() <= stall.items()]


def test_it_speaks_for_all_workers(server: Running) -> None:
    """To the last request, from a process that is no worker, nobody's child, and has their port."""
    server.count_from_here()
    send(server, 60, "/items/1")
    assert server.becomes(60, OUTCOMES, http_route="/items/{item}")
    assert server.published("loopscope_workers") == 0, "more of them than before"
    sentinel = psutil.Process(server.sentinel)
    assert sentinel.pid not in {worker.pid for worker in server.workers}
    assert listening_ports(sentinel) == [server.admin]
    assert not any(server.admin in listening_ports(worker) for worker in server.workers)


def test_a_worker_that_hangs_is_seen_and_the_others_go_on(server: Running) -> None:
    """While it has its interpreter to itself; and once it is killed, it is not forgotten."""
    server.count_from_here()
    with ask_and_leave_open(server.port, "/hang"):
        assert eventually(lambda: bool(stalls(server, in_progress=True, route="/hang")))
        (stall,) = stalls(server, in_progress=True, route="/hang")
        assert stall["location"].startswith("tests/e2e/service.py:")
        assert stall["location"].endswith(" backtrack")
        assert stall["cause"] == "cpu"
        worker = psutil.Process(int(stall["worker"]))
        assert server.published(IN_PROGRESS, worker=stall["worker"]) > 0
        send(server, 20, "/items/1")
        assert server.becomes(20, OUTCOMES, http_route="/items/{item}")
        assert eventually(lambda: f"worker {worker.pid} hangs" in server.said)
        assert server.published(STALLS, http_route="/hang") == 0
        worker.kill()
        assert server.becomes(1, STALLS, http_route="/hang", cause="cpu")
    (last,) = stalls(server, route="/hang")
    assert (last["cut_short"], last["worker"]) == (True, stall["worker"])
    assert last["location"] == stall["location"]
    assert server.becomes(1, "loopscope_worker_ends_total", how="killed")


def test_a_stall_that_ends_is_one_record(server: Running) -> None:
    """The worker's own, which knows more, with what was seen from outside in it."""
    server.client.get("/block/0.7").raise_for_status()
    assert eventually(lambda: bool(stalls(server, route="/block/{seconds}", in_progress=False)))
    (stall,) = stalls(server, route="/block/{seconds}")
    assert stall["location"] == stall["outside"]["location"]
    assert stall["method"] == "GET"


def test_a_thread_that_keeps_the_interpreter_is_named(server: Running) -> None:
    """Which nobody in that process could have seen."""
    server.client.get("/thief/0.7").raise_for_status()

    def named() -> list[dict[str, Any]]:
        contended = stalls(server, cause="gil_contention")
        return [stall for stall in contended if stall["outside"] is not None]

    assert eventually(lambda: bool(named()))
    (stall,) = named()
    assert stall["outside"]["thread"] == "thief"
    assert stall["evidence"]["thread_location"].endswith(" steal")


def test_a_sentinel_that_is_killed_is_replaced(server: Running) -> None:
    """By one, and nothing that was counted is lost."""
    send(server, 10, "/items/1")
    before = server.published(OUTCOMES, http_route="/items/{item}")
    killed = server.sentinel
    os.kill(killed, signal.SIGKILL)
    assert eventually(lambda: server.sentinel not in (0, killed))
    send(server, 10, "/items/1")
    assert server.becomes(before + 10, OUTCOMES, http_route="/items/{item}")


def test_it_stays_while_workers_come_and_go(tmp_path: Path) -> None:
    """One sentinel for all of them, however often they are recycled."""
    with Running(gunicorn_recycling, tmp_path / "log", LOOPSCOPE_SENTINEL="1") as server:
        assert eventually(lambda: bool(server.sentinel))
        first = server.sentinel
        send(server, 300, "/items/1")
        assert server.becomes(300, OUTCOMES, http_route="/items/{item}")
        assert eventually(lambda: server.published("loopscope_worker_starts_total") > WORKERS)
        assert server.becomes(WORKERS, "loopscope_workers")
        assert server.sentinel == first, server.said


def test_it_ends_though_all_were_killed(tmp_path: Path) -> None:
    """It does not outlive its workers, and nobody has to tell it."""
    with Running(gunicorn, tmp_path / "log", LOOPSCOPE_SENTINEL="1") as server:
        assert eventually(lambda: bool(server.sentinel))
        sentinel = psutil.Process(server.sentinel)
        workers = server.workers
        server.process.kill()
        for worker in workers:
            worker.kill()
        assert eventually(lambda: has_ended(sentinel))


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("command", [alone, gunicorn])
def test_no_file_is_left_once_the_service_has_ended(
    tmp_path: Path, command: Command, how: signal.Signals
) -> None:
    """In whatever way: who had the figures is gone, and the next service is another."""
    with Running(command, tmp_path / "log", LOOPSCOPE_SENTINEL="1") as server:
        assert eventually(lambda: bool(server.sentinel))
        workers = server.workers
        server.stop(how)
        for worker in filter(psutil.Process.is_running, workers):
            worker.send_signal(how)
        assert eventually(lambda: not list(tmp_path.glob("loopscope-*/*")))


def test_a_single_process_can_have_one(tmp_path: Path) -> None:
    """Which speaks for it, and is seen by nobody else."""
    with Running(alone, tmp_path / "log", LOOPSCOPE_SENTINEL="1") as server:
        send(server, 3, "/items/1")
        assert server.becomes(3, OUTCOMES, http_route="/items/{item}")
        assert listening_ports(psutil.Process(server.sentinel)) == [server.admin]
        assert eventually(lambda: server.workers == [])  # who started it is waited for in time


@pytest.mark.parametrize("wanted", ["", "0"])
def test_under_run_there_is_one_unless_it_is_not_wanted(tmp_path: Path, wanted: str) -> None:
    """``loopscope run`` asks for one; who has said otherwise is heard."""
    environ = {"LOOPSCOPE_SENTINEL": wanted} if wanted else {}
    with Running(under_run(alone), tmp_path / "log", BARE="1", **environ) as server:
        send(server, 3, "/items/1")
        assert server.becomes(3, OUTCOMES, http_route="/items/{item}")
        assert bool(server.sentinel) == (not wanted)
