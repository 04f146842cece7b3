"""Agents that share a directory, and what becomes of them where that goes wrong."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loopscope import Loopscope, agent
from loopscope.agent import current_agent, stop_agent
from loopscope.core.clock import Clock
from loopscope.core.group import Group
from tests.e2e.running import eventually
from tests.harness import call, published

OUTCOMES = "loopscope_request_outcomes_total"

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def serve(**settings: Any) -> None:
    """Answer one request, and stay."""
    asyncio.run(call(Loopscope(hello, **settings)))


@contextmanager
def worker(body: Callable[[], object]) -> Iterator[int]:
    """A forked process that says when ``body`` is done, and stays until it is killed."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        try:
            body()
            os.write(theirs, b"done")
            os.close(theirs)
            while True:
                signal.pause()
        finally:
            os._exit(1)
    os.close(theirs)
    try:
        assert os.read(ours, 4) == b"done"
        yield pid
    finally:
        os.close(ours)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def others_in(directory: Path) -> Group:
    """What a bystander sees of the group."""
    return Group(directory, Clock(), own=lambda: None)


def test_a_killed_worker_is_dead_though_a_child_it_forked_lives(tmp_path: Path) -> None:
    """A child of multiprocessing is no new program: the lock must not go on with it."""
    pids = tmp_path / "pids"
    home = tmp_path / "home"

    def serve_and_fork() -> None:
        serve(directory=str(home))
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        pids.write_text(str(child.pid))

    group = others_in(home)
    try:
        with worker(serve_and_fork):
            group.pages()
            assert group.alive == 1
        child = int(pids.read_text())
        os.kill(child, 0)
        group.pages()
        assert group.alive == 0
        assert group.fold() == 1
    finally:
        os.kill(int(pids.read_text()), signal.SIGKILL)


def test_a_child_lets_go_of_the_locks_even_if_the_rest_of_letting_go_fails(tmp_path: Path) -> None:
    """A library that does not let itself be unhooked costs nobody a false sign of life."""
    serve(directory=str(tmp_path))
    found = current_agent()
    assert found is not None

    def fail() -> None:
        raise RuntimeError

    found.gc.stop, stop = fail, found.gc.stop  # type: ignore[method-assign]
    with worker(lambda: None):
        found.gc.stop = stop  # type: ignore[method-assign]
        path = found.page.path
        found.page._fd, descriptor = None, found.page._fd  # die without saying so
        assert path is not None and descriptor is not None
        os.close(descriptor)
        assert others_in(tmp_path).fold() == 1


@pytest.mark.parametrize("kind", ["writable", "link", "file", "foreign"])
def test_a_place_prepared_by_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Figures stay in the process, and the log says why and what to do; nothing is put there."""
    above = tmp_path / f"loopscope-{os.geteuid()}"
    monkeypatch.setattr(agent, "home_of_group", lambda: above / "1-0123456789abcdef")
    target = tmp_path / "target"
    target.mkdir()
    if kind == "file":
        above.touch()
    elif kind == "link":
        above.symlink_to(target)
    else:
        above.mkdir(mode=0o700)
        above.chmod(0o777 if kind == "writable" else 0o700)
    if kind == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root gives directories away")
        os.chown(above, 12345, 12345)
    serve()
    assert published(OUTCOMES) == 1
    assert "figures stay in this process" in caplog.text
    assert "LOOPSCOPE_DIR" in caplog.text
    assert not list(target.iterdir())
    assert above.is_file() or not list(above.iterdir())


def no_place() -> Path:
    raise FileNotFoundError("No usable temporary directory found")


def no_locks(*_: object) -> None:
    raise OSError(37, "No locks available")


@pytest.mark.quiet_faults
def test_without_a_place_for_temporary_files_there_is_no_sharing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The request that starts the agent does not notice."""
    monkeypatch.setattr(agent, "home_of_group", no_place)
    serve()
    assert published(OUTCOMES) == 1
    assert published("loopscope_agent_errors_total", part="workers") == 1


def test_where_files_cannot_be_locked_there_is_no_sharing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some network file systems: figures stay in the process, and no file stays behind."""
    monkeypatch.setattr("fcntl.flock", no_locks)
    serve(directory=str(tmp_path))
    assert published(OUTCOMES) == 1
    assert "figures stay in this process" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_a_directory_taken_away_costs_nothing_of_ones_own(tmp_path: Path) -> None:
    """Whoever tidied up gets no exception, and the service none either."""
    home = tmp_path / "home"
    serve(directory=str(home))
    assert eventually(lambda: any(home.glob("*.sock")))
    shutil.rmtree(home)
    assert published(OUTCOMES) == 1
    assert published("loopscope_skipped_pages", reason="unreadable") >= 1


def test_a_worker_writes_down_its_figures_unasked_even_if_stalls_are_off(tmp_path: Path) -> None:
    """Who speaks for all reads them from the page only: somebody has to put them there."""
    serve(directory=str(tmp_path), stalls=False)
    found = current_agent()
    assert found is not None

    def beats() -> float:
        return found.page.slots[6]

    first = beats()
    assert eventually(lambda: beats() > first)


def test_what_takes_long_to_write_down_is_written_down_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose counting takes more than a hundredth of a core does not count every second.

    What that takes all the same is published, next to everything else the watchdog does.
    """
    serve(directory=str(tmp_path))
    found = current_agent()
    assert found is not None
    counted: list[float] = []

    def count_a_lot() -> None:
        counted.append(began := time.thread_time())
        while time.thread_time() < began + 0.1:
            pass

    monkeypatch.setattr(found.tasks, "refresh", count_a_lot)
    assert eventually(lambda: found.watchdog.spent >= 0.1)
    spent = found.watchdog.spent
    assert eventually(lambda: found.watchdog.spent > spent)  # it goes on with the rest
    assert len(counted) == 1
    assert published("loopscope_agent_overhead_seconds_total", part="watchdog") >= 0.1


def test_what_a_server_that_is_gone_has_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some time after the start, by the way; what is in use or recent stays."""
    above = tmp_path / f"loopscope-{os.geteuid()}"
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(agent, "home_of_group", lambda: above / f"1-{'0' * 16}")
    monkeypatch.setattr("psutil.pid_exists", lambda pid: False)
    old, recent = above / f"7-{'1' * 16}", above / f"8-{'2' * 16}"
    for home in (old, recent):
        serve(directory=str(home))
        stop_agent()
    for path in (*old.iterdir(), old):
        os.utime(path, (0, 0))
    above.chmod(0o700)
    serve()
    assert eventually(lambda: not old.exists())
    assert recent.exists()
