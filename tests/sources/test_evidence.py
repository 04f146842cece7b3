"""What is read about real threads, and what is not to be had."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from loopscope.sources import evidence
from loopscope.sources.evidence import (
    Moment,
    ThreadClock,
    Witness,
    other_threads,
    polls_in_kernel,
    waits_in_kernel,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no such books elsewhere")

ROOT = Path(__file__).parents[2]


class Sleeper(threading.Thread):
    """A thread that waits until it is told to work, and then until it is told to end."""

    def __init__(self) -> None:
        super().__init__()
        self.work, self.worked, self.end = (threading.Event() for _ in range(3))

    def run(self) -> None:
        self.work.wait()
        until = time.thread_time() + 0.05
        while time.thread_time() < until:
            pass
        self.worked.set()
        self.end.wait()


@contextmanager
def sleeper() -> Iterator[Sleeper]:
    thread = Sleeper()
    thread.start()
    try:
        yield thread
    finally:
        thread.work.set()
        thread.end.set()
        thread.join()


@contextmanager
def witness_of(thread: threading.Thread, root: Path = Path("/")) -> Iterator[Witness]:
    witness = Witness(thread.ident or 0, thread.native_id or 0, root)
    try:
        yield witness
    finally:
        witness.close()


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.real_time
def test_a_clock_tells_the_cpu_of_another_thread() -> None:
    """It stands while the thread sleeps and goes while it works; ours does not count."""
    with sleeper() as thread:
        clock = ThreadClock(thread.ident or 0, thread.native_id or 0)
        before = clock.cpu()
        assert before is not None
        sum(range(1_000_000))
        assert clock.cpu() == pytest.approx(before, abs=0.01)
        thread.work.set()
        thread.worked.wait()
        after = clock.cpu()
        assert after is not None
        assert after - before >= 0.05


def test_a_clock_is_numbered_as_the_c_library_does_it() -> None:
    """The number made without looking into the thread's memory is the documented call's."""
    with sleeper() as thread:
        expected = time.pthread_getcpuclockid(thread.ident or 0)
        assert ThreadClock(thread.ident or 0, thread.native_id or 0)._number == expected


@pytest.mark.real_time
def test_a_clock_falls_back_on_schedstat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a sandbox forbids the clock, the scheduler's figure is as good."""
    with sleeper() as thread:
        thread.work.set()
        thread.worked.wait()
        clock = ThreadClock(thread.ident or 0, thread.native_id or 0)
        monkeypatch.setattr(evidence, "_clock_number", lambda native_id: 12345)
        forbidden = ThreadClock(thread.ident or 0, thread.native_id or 0)
        assert forbidden.cpu() == pytest.approx(clock.cpu(), abs=0.02)


@pytest.mark.real_time
def test_a_thread_that_has_ended_has_no_books() -> None:
    """Asking about it is safe, and answered by nothing."""
    with sleeper() as thread, witness_of(thread) as witness:
        assert witness.snapshot().cpu is not None
        native_id, ident = thread.native_id or 0, thread.ident or 0
        thread.work.set()
        thread.end.set()
        thread.join()
        _until_gone(native_id)
        moment = witness.snapshot()
        assert (moment.cpu, moment.run_wait, moment.runs) == (None, None, None)
        assert (moment.state, moment.major_faults) == (None, None)
        assert ThreadClock(ident, native_id).cpu() is None
        assert waits_in_kernel(native_id) is None


def _until_gone(native_id: int) -> None:
    """Python calls a thread ended a moment before the kernel does."""
    until = time.monotonic() + 5
    while Path(f"/proc/self/task/{native_id}").exists() and time.monotonic() < until:
        time.sleep(0.001)


@pytest.mark.real_time
def test_snapshots_show_that_a_thread_worked_or_slept() -> None:
    """CPU and runs grow with work; a sleeping thread's stand still while the watching one works."""
    with sleeper() as thread, witness_of(thread) as witness:
        _until_asleep(witness)
        first, second = witness.snapshot(), witness.snapshot()
        assert (first.cpu, first.runs, first.state) == (second.cpu, second.runs, "S")
        assert second.at > first.at
        assert second.own_cpu > first.own_cpu
        thread.work.set()
        thread.worked.wait()
        third = witness.snapshot()
        assert third.cpu is not None and second.cpu is not None
        assert third.runs is not None and second.runs is not None
        assert third.cpu - second.cpu >= 0.05
        assert third.runs > second.runs


def _until_asleep(witness: Witness) -> None:
    until = time.monotonic() + 5
    while witness.snapshot().state != "S" and time.monotonic() < until:
        time.sleep(0.001)


def test_the_watching_thread_counts_its_own_switches() -> None:
    """Each sleep of the watcher is one switch at least, in full snapshots and in its own."""
    with sleeper() as thread, witness_of(thread) as witness:
        before = witness.own()
        for _ in range(5):
            time.sleep(0.001)
        after = witness.own()
        assert before.own_switches is not None and after.own_switches is not None
        assert after.own_switches - before.own_switches >= 5
        assert after.own_run_wait is not None
        assert after.cpu is None
        assert (witness.snapshot().own_switches or 0) >= after.own_switches


@pytest.mark.real_time
def test_a_pause_between_two_clocks_is_not_one_of_the_machine() -> None:
    """Snapshots in a row agree on how long the machine has been suspended."""
    with sleeper() as thread, witness_of(thread) as witness:
        seen = [witness.snapshot().suspended for _ in range(200)]
        known = [value for value in seen if value is not None]
        assert len(known) == len(seen)
        assert max(known) - min(known) < 0.01


def test_all_but_the_caller_and_the_known_are_listed() -> None:
    """Other threads are listed by native id with their CPU, without us and those asked to omit."""
    with sleeper() as one, sleeper() as two:
        one.work.set()
        one.worked.wait()
        used = other_threads(two.native_id or 0)
        assert used[one.native_id or 0] >= 0.05
        assert not {two.native_id, threading.get_native_id()} & used.keys()


@pytest.mark.real_time
def test_a_thread_that_waits_for_a_lock_waits_for_a_futex() -> None:
    """The kernel shows what a sleeping thread waits for, where it shows that at all."""
    with sleeper() as thread, witness_of(thread) as witness:
        _until_asleep(witness)
        assert waits_in_kernel(thread.native_id or 0) in ("futex", None)


@pytest.mark.parametrize(
    ("call", "place", "expected"),
    [
        ("running\n", "0", "running"),
        ("202 0x7f 0x189 0x0\n", "0", "futex"),
        ("230 0x0 0x0\n", "hrtimer_nanosleep", "syscall 230"),
        ("-1 0x7ffc 0x7f\n", "folio_wait_bit", "folio_wait_bit"),
        ("-1 0x7ffc 0x7f\n", "0", None),
        ("", "futex_wait_queue", "futex"),
        ("", "do_epoll_wait", "do_epoll_wait"),
        ("", "0", None),
        ("", "", None),
    ],
)
def test_the_kernels_words(
    call: str, place: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call decides; the kernel's function steps in where calls are hidden or there is none."""
    files = {"/proc/self/task/7/syscall": call, "/proc/self/task/7/wchan": place}
    monkeypatch.setattr(evidence, "_text", lambda path: files[path].encode())
    monkeypatch.setattr(evidence, "_MACHINE", "x86_64")
    assert waits_in_kernel(7) == expected


@pytest.mark.parametrize(
    ("call", "machine", "expected"),
    [
        ("syscall 281", "x86_64", True),
        ("syscall 22", "aarch64", True),
        ("syscall 230", "x86_64", False),
        ("futex", "x86_64", False),
        ("running", "x86_64", False),
        ("ep_poll", "x86_64", True),
        ("do_epoll_wait", "sparc", True),
        ("syscall 281", "sparc", None),
        (None, "x86_64", None),
    ],
)
def test_who_waits_for_events_polls(
    call: str | None, machine: str, expected: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epoll's calls by their numbers where those are known, or the kernel's function."""
    monkeypatch.setattr(evidence, "waits_in_kernel", lambda native_id: call)
    monkeypatch.setattr(evidence, "_MACHINE", machine)
    assert polls_in_kernel(7) is expected


@pytest.mark.real_time
def test_a_brief_reading_agrees_with_a_whole_one() -> None:
    """It leaves out what seldom changes, and nothing else."""
    with sleeper() as thread, witness_of(thread) as witness:
        _until_asleep(witness)
        brief, whole = witness.brief(), witness.snapshot()
        assert (brief.cpu, brief.runs) == (whole.cpu, whole.runs)
        assert brief.own_cpu <= whole.own_cpu
        assert brief.state is None


def tree(root: Path, **files: str) -> Path:
    """A root folder with a thread 7 that does not exist."""
    task = root / "proc/self/task/7"
    task.mkdir(parents=True)
    (root / "proc/thread-self").mkdir()
    (root / "proc/thread-self/schedstat").write_text("1 500000000 3\n")
    for name, text in files.items():
        (task / name).write_text(text)
    (root / "proc/self/cgroup").write_text("0::/\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/cpu.stat").write_text(
        "nr_periods 1\nnr_throttled 1\nthrottled_usec 2500000\n"
    )
    return root


def test_figures_come_from_their_fields(tmp_path: Path) -> None:
    """Nanoseconds and microseconds become seconds; brackets in a thread's name mislead nobody."""
    stat = "7 (a) b (c)) D 1 2 3 0 -1 4194368 3 645 42 6 0 0"
    root = tree(tmp_path, schedstat="1500000000 250000000 12\n", stat=stat)
    witness = Witness(7, 2**22 + 7, root)  # no such thread: no clock
    witness._schedstat._path = root / "proc/self/task/7/schedstat"
    witness._stat._path = root / "proc/self/task/7/stat"
    moment = witness.snapshot()
    witness.close()
    assert (moment.run_wait, moment.runs) == (0.25, 12)
    assert (moment.state, moment.major_faults) == ("D", 42)
    assert (moment.throttled, moment.own_run_wait) == (2.5, 0.5)


@pytest.mark.parametrize("text", ["", "nonsense", "1 2", "a b c", "7 (x)", "7 (x) S 1 2"])
def test_books_that_make_no_sense_are_not_read(tmp_path: Path, text: str) -> None:
    """A file in another format gives nothing, rather than a wrong figure or an error."""
    assert evidence.parse_schedstat(text.encode()) is None
    assert evidence._stat(text.encode()) == (None, None)


def test_a_platform_without_books(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is nothing to read, a moment is the time and our own CPU; nothing raises."""
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(time, "pthread_getcpuclockid")
    monkeypatch.setattr(evidence, "_RUSAGE_THREAD", None)
    monkeypatch.setattr(evidence, "_text", lambda path: b"")
    witness = Witness(1, 2, tmp_path)
    moment = witness.snapshot()
    assert moment == Moment(at=moment.at, own_cpu=moment.own_cpu)
    assert other_threads() == {}
    assert waits_in_kernel(2) is None
    witness.close()


def test_files_are_kept_open_and_closed() -> None:
    """Snapshots open nothing after the first, and close leaves nothing open; twice is once."""
    with sleeper() as thread:
        before = open_files()
        witness = Witness(thread.ident or 0, thread.native_id or 0)
        witness.snapshot()
        opened = open_files()
        for _ in range(5):
            witness.snapshot()
        assert open_files() == opened > before
        witness.close()
        witness.close()
        assert open_files() == before
        assert witness.snapshot().run_wait is not None
        witness.close()
        assert open_files() == before


def test_a_file_that_took_our_number_is_not_closed(tmp_path: Path) -> None:
    """A service that closed all descriptors and opened its own keeps what it opened."""
    with sleeper() as thread, witness_of(thread) as witness:
        witness.snapshot()
        kept = witness._schedstat._descriptor
        os.close(kept)
        theirs = os.open(tmp_path / "log", os.O_RDWR | os.O_CREAT)
        assert theirs == kept
        assert witness.snapshot().run_wait is None
        witness.close()
        assert os.write(theirs, b"still open") == 10
        os.close(theirs)


FORKED = """
import os, threading
from loopscope.sources.evidence import Witness
main = threading.main_thread()
witness = Witness(main.ident, main.native_id)
assert witness.snapshot().runs is not None
before = len(os.listdir("/proc/self/fd"))
if os.fork() == 0:
    moment = witness.snapshot()
    assert (moment.cpu, moment.run_wait, moment.runs, moment.state) == (None,) * 4, moment
    assert moment.own_run_wait is not None
    own = Witness(main.ident, threading.get_native_id())
    assert own.snapshot().runs is not None
    own.close()
    witness.close()
    assert len(os.listdir("/proc/self/fd")) < before
    os._exit(0)
_, status = os.wait()
assert status == 0, status
assert witness.snapshot().runs is not None
"""


def test_a_forked_child_does_not_read_its_parents_books() -> None:
    """In a child the parent's thread is unknown, and the parent reads on undisturbed."""
    subprocess.run(
        [sys.executable, "-c", FORKED],
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
