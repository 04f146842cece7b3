"""Workers as seen from outside: real child processes, watched from this one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from loopscope.core.clock import FakeTime
from loopscope.sources import outside
from loopscope.sources.outside import METRICS, WorkersView

pytestmark = pytest.mark.skipif(not Path("/proc").exists(), reason="much is read from /proc")

MIB = 1 << 20
QUOTA = {outside.PERIODS.name, outside.THROTTLED_PERIODS.name, outside.THROTTLED.name}
"""What there is only below a CPU quota."""


class Worker:
    """A process that does what it is told, a line of Python at a time."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", "import sys\nfor line in sys.stdin: exec(line); print()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.pid = self.process.pid
        self.do("pass")

    def do(self, line: str) -> None:
        """Have one line run, to its end."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "\n"

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def worker() -> Iterator[Worker]:
    child = Worker()
    try:
        yield child
    finally:
        child.end()


def values(view: WorkersView, *pids: int) -> dict[tuple[str, ...], float]:
    """All that is said of ``pids``, by metric and labels."""
    return {
        (family.metric.name, *labels): family.values(raw)[0]
        for family in view.families(pids)
        for labels, raw in family.rows.items()
    }


@pytest.fixture
def view() -> WorkersView:
    return WorkersView(FakeTime().clock().now)


def test_everything_declared_is_read(view: WorkersView) -> None:
    """Whoever runs as the same user sees every figure, but for a quota where there is none."""
    with worker() as child:
        found = values(view, child.pid)
    assert {name for name, *_ in found} | QUOTA == {metric.name for metric in METRICS} | QUOTA
    assert all(labels[-1] == str(child.pid) for _, *labels in found)


def test_figures_are_the_workers_not_the_watchers(view: WorkersView) -> None:
    """Memory, descriptors and threads grow by what the worker takes, and by nothing taken here."""
    with worker() as child, Path(os.devnull).open():
        before = values(view, child.pid)
        child.do("import os, threading; files = [open(os.devnull) for _ in range(10)]")
        child.do("threads = [threading.Thread(target=threading.Event().wait, daemon=True)]")
        child.do("threads[0].start(); touched = bytearray(os.urandom(1 << 20)) * 64")
        after = values(view, child.pid)
        pid = str(child.pid)
    grown = {key[0]: after[key] - before[key] for key in before if key[-1:] == (pid,)}
    assert grown[outside.OPEN_FDS.name] == 10
    assert grown[outside.THREADS.name] == 1
    assert grown[outside.RESIDENT.name] > 32 * MIB


def test_the_kernels_books_are_those_psutil_reads(view: WorkersView) -> None:
    """Start and limit are what others say of the same process."""
    with worker() as child:
        found = values(view, child.pid)
        said = psutil.Process(child.pid)
        pid = str(child.pid)
        assert found[outside.START_TIME.name, pid] == said.create_time()
        assert found[outside.MAX_FDS.name, pid] == said.rlimit(psutil.RLIMIT_NOFILE)[0]


def test_cpu_time_grows_by_what_was_burnt(view: WorkersView) -> None:
    """User and system time together, to the kernel's tick."""

    def spent(pid: int) -> float:
        found = values(view, pid)
        return sum(value for (name, *_), value in found.items() if name == outside.CPU.name)

    with worker() as child:
        before = spent(child.pid)
        child.do("import time; until = time.process_time() + 0.2")
        child.do("while time.process_time() < until: pass")
        ticks = 2 / os.sysconf("SC_CLK_TCK")  # user and system time are each rounded down
        assert spent(child.pid) - before >= 0.2 - ticks


def test_unique_memory_is_read_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting it holds the worker up, so the latest figure stands for some seconds."""
    time = FakeTime()
    view = WorkersView(time.clock().now)
    with worker() as child:
        key = (outside.UNIQUE.name, str(child.pid))
        before = values(view, child.pid)[key]
        child.do("touched = bytearray(b'x') * (64 << 20)")
        assert values(view, child.pid)[key] == before
        time.advance(15.0)
        assert values(view, child.pid)[key] > before + 32 * MIB


def test_a_worker_that_has_ended_is_not_there(view: WorkersView) -> None:
    """Neither one that was seen before nor one that never was; the others are."""
    with worker() as child:
        with worker() as gone:
            assert len({key[-1] for key in values(view, child.pid, gone.pid)}) == 2
        assert {key[-1] for key in values(view, child.pid, gone.pid)} == {str(child.pid)}


def test_one_that_ends_while_it_is_read_costs_nothing(
    view: WorkersView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could be read before that stands; nothing is raised."""
    with worker() as child:
        seen = values(view, child.pid)

        def killed(_: object) -> Iterator[Any]:
            child.end()
            yield from ()

        monkeypatch.setattr(outside._Worker, "_throttling", killed)
        names = {name for name, *_ in values(view, child.pid)}
    assert (outside.OPEN_FDS.name, str(child.pid)) in seen
    assert outside.CPU.name in names
    assert outside.OPEN_FDS.name not in names


def test_a_number_that_is_used_again_is_another_worker(
    view: WorkersView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process is known by when it was started, too: nothing kept of the old one is said of it."""
    with worker() as child:
        key = (outside.UNIQUE.name, str(child.pid))
        before = values(view, child.pid)[key]
        child.do("touched = bytearray(b'x') * (64 << 20)")
        monkeypatch.setattr(view._workers[child.pid], "is_running", lambda: False)
        assert values(view, child.pid)[key] > before + 32 * MIB


def test_what_may_not_be_read_has_no_row(
    view: WorkersView, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's process says how long it has run, not which files it has open."""

    def denied(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(outside, "open_fds_at_once", denied)
    monkeypatch.delattr(psutil.Process, "rlimit")  # as on macOS
    with worker() as child:
        names = {name for name, *_ in values(view, child.pid)}
    assert outside.CPU.name in names
    assert not names & {outside.OPEN_FDS.name, outside.MAX_FDS.name}


def test_a_quota_is_that_of_the_workers_own_group(tmp_path: Path) -> None:
    """Not of the group that the watcher is in."""
    for pid, group in (("self", "/watcher"), (str(os.getpid()), "/worker")):
        (tmp_path / "proc" / pid).mkdir(parents=True)
        (tmp_path / "proc" / pid / "cgroup").write_text(f"0::{group}\n")
        folder = tmp_path / "sys/fs/cgroup" / group.strip("/")
        folder.mkdir(parents=True)
        periods = 7 if group == "/worker" else 1
        (folder / "cpu.stat").write_text(
            f"nr_periods {periods}\nnr_throttled 3\nthrottled_usec 1500000\n"
        )
    pid = str(os.getpid())
    found = values(WorkersView(FakeTime().clock().now, tmp_path), os.getpid())
    assert found[outside.PERIODS.name, pid] == 7
    assert found[outside.THROTTLED_PERIODS.name, pid] == 3
    assert found[outside.THROTTLED.name, pid] == 1.5
