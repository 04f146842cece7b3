"""What is in the sentinel's directory may be anything: it looks into nobody but proved workers."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loopscope.core.clock import Clock
from loopscope.core.group import Group
from loopscope.core.page import HEADER_BYTES, Page
from loopscope.core.stacks import UserCode
from loopscope.sentinel.pyspy import SeenThread, dump
from loopscope.sentinel.watch import Watch
from loopscope.sources.endpoints import ENDPOINT
from loopscope.sources.loop import BEAT_DUE, THREAD

NAN, INF = float("nan"), float("inf")
PID = struct.Struct("=Q")
PID_AT = 16
"""Where a page says whose it is."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells who has a lock")


class Worker:
    """A page of this process' own, whose loop's beat is late."""

    def __init__(self, directory: Path) -> None:
        self.page = Page.in_directory(directory, Clock())
        self.due = self.page.allocate(BEAT_DUE, ("1",))
        self.thread = self.page.allocate(THREAD, ("1",))
        self.page.slots[self.due] = Clock().now()
        self.page.slots[self.thread] = os.getpid()

    @property
    def path(self) -> Path:
        assert self.page.path is not None
        return self.page.path


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    worker = Worker(tmp_path)
    yield worker
    worker.page.close()


class Watching:
    """A watch that goes round, and whom it has looked into."""

    def __init__(
        self, directory: Path, look: Callable[..., list[SeenThread]] | None = None
    ) -> None:
        self.looked: list[int] = []
        self.watch = Watch(
            Group(directory, Clock(), own=lambda: None),
            Clock(),
            UserCode(),
            threshold=0.05,
            note=lambda _: None,
            look=look or self._look,
        )

    def _look(self, pid: int, *, native: bool = False) -> list[SeenThread]:
        self.looked.append(pid)
        return []

    def go_on(self, seconds: float = 0.6) -> list[dict[str, Any]]:
        """Go round for a while; what there is to tell."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(self.watch.round())
        return self.watch.stalls()

    def until_tried(self) -> dict[str, Any]:
        """Go round until there was a look, however it went; the stall it was about."""
        until = time.monotonic() + 30.0
        while not any(hang.tried for hang in self.watch.hangs.values()):
            assert time.monotonic() < until
            time.sleep(self.watch.round())
        (stall,) = self.go_on(0.1)
        return stall


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Callable[..., Watching]]:
    """Begin to watch over the directory."""
    with ExitStack() as stack:

        def begin(**options: Any) -> Watching:
            watching = Watching(tmp_path, **options)
            stack.callback(watching.watch.close)
            return watching

        yield begin


def test_a_late_beat_of_a_true_page_is_looked_into(
    tmp_path: Path, worker: Worker, watch: Callable[..., Watching]
) -> None:
    """So what follows is not for want of looking."""
    watching = watch()
    stall = watching.until_tried()
    assert stall["worker"] == str(os.getpid())
    assert set(watching.looked) == {os.getpid()}
    assert watching.watch.pids == [os.getpid()]
    assert Group(tmp_path, Clock(), own=lambda: None).workers() == [os.getpid()]


def litter(directory: Path, valid: bytes) -> None:
    """Everything that is called a page, and is none."""
    (directory / "1-garbage.page").write_bytes(os.urandom(5000))
    (directory / "1-empty.page").touch()
    (directory / "1-short.page").write_bytes(valid[:300])
    (directory / "1-torn.page").write_bytes(valid[:HEADER_BYTES] + os.urandom(4096))
    with (directory / "1-huge.page").open("wb") as file:
        head = bytearray(valid[:HEADER_BYTES])
        head[56:64] = (1 << 28).to_bytes(8, sys.byteorder)
        file.write(head)
        file.truncate(1 << 32)
    (directory / "1-link.page").symlink_to("/proc/self/mem")
    (directory / "1-directory.page").mkdir()
    os.mkfifo(directory / "1-pipe.page")
    if os.geteuid() == 0:
        foreign = directory / "1-foreign.page"
        foreign.write_bytes(valid)
        os.chown(foreign, 12345, 12345)


def test_what_is_no_page_does_not_stop_the_watch(
    tmp_path: Path, worker: Worker, watch: Callable[..., Watching]
) -> None:
    """Locked, as a worker's is, or not; the one worker that there is is seen all the same."""
    litter(tmp_path, worker.path.read_bytes())
    with ExitStack() as stack:
        for path in tmp_path.glob("1-*.page"):
            if path.is_file() and not path.is_symlink():
                fcntl.flock(stack.enter_context(path.open("r+b")), fcntl.LOCK_EX)
        watching = watch()
        assert watching.until_tried()["worker"] == str(os.getpid())
        watching.go_on()
    assert set(watching.looked) == {os.getpid()}


def test_a_page_that_is_cut_short_under_watch_is_survived(
    worker: Worker, watch: Callable[..., Watching]
) -> None:
    """What it had shown so far stands; nothing of it is mapped, so nothing kills us."""
    watching = watch()
    assert watching.until_tried()
    whole = worker.path.stat().st_size
    for size in (worker.page.used - 8, 300, 10, 0):
        os.truncate(worker.path, size)
        watching.go_on(0.3)
    os.truncate(worker.path, whole)  # which is mapped here, as it is in a worker
    assert not watching.watch.hangs
    assert [stall["in_progress"] for stall in watching.watch.stalls()] == [False]


@pytest.mark.parametrize("due", [NAN, INF, -INF, -1.0, 1e-300, 1e300, 1.0])
def test_a_beat_that_is_no_moment_is_no_beat(
    worker: Worker, watch: Callable[..., Watching], due: float
) -> None:
    """Nor one that was due before there was a page: no hang is longer than its worker's life."""
    worker.page.slots[worker.due] = due
    watching = watch()
    assert watching.go_on() == []
    assert not watching.looked


@pytest.mark.parametrize("thread", [NAN, INF, -INF, -1.0, 0.0, 0.5, 1e12, 1e300])
def test_a_thread_that_is_none_is_not_blamed(
    worker: Worker, watch: Callable[..., Watching], thread: float
) -> None:
    """The loop hangs, and that is all that is known."""
    worker.page.slots[worker.thread] = thread
    stall = watch().until_tried()
    assert (stall["cause"], stall["location"]) == ("unknown", "")


def test_a_beat_that_turns_into_garbage_ends_the_hang(
    worker: Worker, watch: Callable[..., Watching]
) -> None:
    """It is recorded for as long as it was known to last."""
    watching = watch()
    watching.until_tried()
    worker.page.slots[worker.due] = NAN
    (stall,) = watching.go_on(0.2)
    assert not stall["in_progress"]


def test_an_endpoint_with_a_line_that_is_no_number_costs_itself_only(
    worker: Worker, watch: Callable[..., Watching]
) -> None:
    """The others are known, those that came after it included."""
    for line, route in (("x", "/x"), ("9" * 5000, "/nines"), ("-1", "/minus"), ("7", "/seven")):
        worker.page.allocate(ENDPOINT, ("app.py", "f", line, route))
    watching = watch()
    watching.until_tried()
    (heart,) = watching.watch._heartbeats.hearts.values()
    assert heart.endpoints == {("app.py", "f"): [(7, "/seven")]}


@linux
@pytest.mark.parametrize("pid", [1, os.getppid(), 0, 2**31, 2**63, 2**64 - 1])
def test_nobody_is_looked_into_for_being_named_in_a_page(
    tmp_path: Path, worker: Worker, watch: Callable[..., Watching], pid: int
) -> None:
    """Whoever may write to a page cannot have root look into processes for them."""
    with worker.path.open("r+b") as file:
        file.seek(PID_AT)
        file.write(PID.pack(pid))
    watching = watch()
    stall = watching.until_tried()
    assert stall["worker"] == str(pid)
    assert "has not locked the page that bears its number" in stall["evidence"]["refused"]
    assert set(watching.watch.looks) == {"refused"}
    assert (watching.looked, watching.watch.pids) == ([], [])
    assert Group(tmp_path, Clock(), own=lambda: None).workers() == []


@linux
def test_whoever_has_taken_over_a_workers_number_is_not_looked_into(
    worker: Worker, watch: Callable[..., Watching], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose number it is is found out again once the process is another one."""
    watching = watch()
    watching.until_tried()
    (heart,) = watching.watch._heartbeats.hearts.values()
    assert heart.process is not None
    monkeypatch.setattr(heart.process, "is_running", lambda: False)
    heart.pid = 1
    looks = len(watching.looked)
    watching.go_on()
    assert len(watching.looked) == looks


def fake_spy(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


SPIES = {
    "missing": None,
    "hanging": "exec sleep 60",
    "killed": "kill -9 $$",
    "crashing": "kill -SEGV $$",
    "failing": "echo Error: no >&2; exit 1",
    "mute": "exit 0",
    "babbling": "echo '[{}]'",
}


@pytest.mark.parametrize("spy", SPIES)
def test_a_spy_that_is_no_good_costs_the_line_only(
    tmp_path: Path,
    worker: Worker,
    watch: Callable[..., Watching],
    monkeypatch: pytest.MonkeyPatch,
    spy: str,
) -> None:
    """That the worker hangs is known all the same, and the watch goes on."""
    script = SPIES[spy]
    path = str(tmp_path / "nothing") if script is None else fake_spy(tmp_path / "py-spy", script)
    monkeypatch.setattr("loopscope.sentinel.pyspy.executable", lambda: path)
    watching = watch(look=partial(dump, timeout=0.3))
    stall = watching.until_tried()
    assert (stall["cause"], stall["location"], stall["in_progress"]) == ("unknown", "", True)
    assert set(watching.watch.looks) == {"failed"}
    worker.page.slots[worker.due] = 0.0
    assert [each["in_progress"] for each in watching.go_on(0.2)] == [False]
