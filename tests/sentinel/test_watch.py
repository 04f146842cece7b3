"""The watch, over real workers that hang in real ways: what is seen from outside, and when."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loopscope.core.clock import Clock
from loopscope.core.group import Group
from loopscope.core.stacks import UserCode
from loopscope.sentinel.pyspy import NotAllowedError, PySpyError, SeenThread, dump
from loopscope.sentinel.watch import Dump, Watch
from tests.e2e.running import PATIENCE, ROOT

pytestmark = pytest.mark.real_time
THRESHOLD = 0.1
HERE = "tests/sentinel/worker.py"


class Watched:
    """A worker, and the watch over it, which goes round while something is waited for."""

    def __init__(self, directory: Path, loop: str = "asyncio", **watch: Any) -> None:
        self.notes: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.sentinel.worker", str(directory), loop],
            cwd=ROOT,
            env={**os.environ, "SENTINEL": "on"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.watch = Watch(
            Group(directory, Clock(), own=lambda: None),
            Clock(),
            UserCode(),
            threshold=THRESHOLD,
            note=self.notes.append,
            **watch,
        )
        self.hear("ready")
        self.until(lambda: any(h.endpoints for h in self.watch._heartbeats.hearts.values()))

    def hear(self, expected: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == expected

    def do(self, path: str) -> None:
        """Have the worker serve a request, without waiting for it."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{path}\n")

    def until(self, condition: Callable[[], bool], patience: float = PATIENCE) -> bool:
        """Go round until something holds, or that does not happen."""
        end = time.monotonic() + patience
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(self.watch.round())
        return True

    def after(self, path: str) -> list[dict[str, Any]]:
        """What is seen of a request that the worker serves, in addition to what was before."""
        known = {stall["id"] for stall in self.watch.stalls()}
        self.do(path)
        assert self.until(lambda: any(hang.tried for hang in self.watch.hangs.values()))
        assert self.until(lambda: not self.watch.hangs)
        self.hear("done")
        return [stall for stall in self.watch.stalls() if stall["id"] not in known]

    def accused(self) -> set[str]:
        """The locations that any stall is said to have had."""
        return {stall["location"] for stall in self.watch.stalls()}

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.watch.close()


LOOPS = ("asyncio", "uvloop")


@pytest.fixture(scope="module", params=LOOPS)
def steady(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Watched]:
    """One that survives what it is asked to do; starting it takes longer than most of that."""
    watched = Watched(tmp_path_factory.mktemp("home"), request.param)
    yield watched
    watched.end()


@pytest.fixture(params=LOOPS)
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    watched = Watched(tmp_path, request.param)
    yield watched
    watched.end()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    """Start a worker whose watch is out of the ordinary."""
    started: list[Watched] = []

    def start(**watch: Any) -> Watched:
        started.append(Watched(tmp_path, **watch))
        return started[-1]

    yield start
    for each in started:
        each.end()


def line_of(text: str) -> int:
    lines = (ROOT / HERE).read_text().splitlines()
    (found,) = [number for number, line in enumerate(lines, 1) if text in line]
    return found


def test_code_that_keeps_the_interpreter_is_caught_in_the_act(steady: Watched) -> None:
    """The line, and the route, for which nobody in that process could have been asked."""
    (stall,) = steady.after("/compute/0.6")
    assert stall["location"] == f"{HERE}:{line_of('A_WHILE)')} backtrack"
    assert (stall["cause"], stall["route"]) == ("cpu", "/compute/{seconds}")
    assert stall["worker"] == str(steady.process.pid)
    assert stall["outside"]["looks"] >= 1
    assert not stall["in_progress"]
    assert stall["duration_s"] >= 0.3


def test_a_blocking_call_is_told_from_computing(steady: Watched) -> None:
    """Whatever it is, its line is seen."""
    (stall,) = steady.after("/block/0.6")
    assert stall["location"] == f"{HERE}:{line_of('time.sleep(float')} block"
    assert (stall["cause"], stall["route"]) == ("blocking_call", "/block/{seconds}")


def test_a_thread_that_keeps_the_interpreter_is_named(steady: Watched) -> None:
    """With its line; the loop waits, and no route is to blame."""
    (stall,) = steady.after("/steal/0.6")
    assert (stall["cause"], stall["location"]) == ("gil_contention", "")
    evidence = stall["evidence"]
    assert evidence["thread_name"] == "thief"
    assert evidence["thread_location"] == f"{HERE}:{line_of('PyDLL')} keep"


def test_a_loop_that_awaits_or_rests_does_not_hang(steady: Watched) -> None:
    """It beats all the while: nothing is looked at."""
    before = steady.accused()
    steady.do("/wait/0.7")
    steady.until(lambda: False, 1.5)
    steady.hear("done")
    assert not steady.watch.hangs
    assert steady.accused() <= before | {""}


def test_a_hang_is_seen_while_it_lasts_and_noted(watched: Watched) -> None:
    """And noted each time it has been looked at: whoever reads that later knows as much."""
    watched.do("/hang")
    assert watched.until(lambda: any(note["route"] for note in watched.notes))
    (stall,) = watched.watch.stalls()
    assert stall["in_progress"]
    assert stall["duration_s"] <= watched.watch.held()[str(watched.process.pid)]
    assert (stall["route"], stall["cause"]) == ("/hang", "cpu")
    assert stall["location"].endswith("hang")
    assert [note["id"] for note in watched.notes] == [stall["id"]] * len(watched.notes)
    assert watched.notes[-1]["in_progress"]


def test_a_worker_that_is_killed_while_it_hangs_leaves_its_last_words(watched: Watched) -> None:
    """Route, line and how long it had been by then; nobody else will count that stall."""
    watched.do("/hang")
    assert watched.until(lambda: any(stall["route"] for stall in watched.watch.stalls()))
    watched.process.kill()
    assert watched.until(lambda: bool(watched.watch.cut_short))
    (stall,) = watched.watch.stalls()
    assert (stall["cut_short"], stall["in_progress"]) == (True, False)
    assert (stall["route"], watched.notes[-1]) == ("/hang", stall)
    assert not watched.watch.has_workers


def test_a_stopped_process_does_not_hang(steady: Watched) -> None:
    """Whoever stopped it knows; it is not looked into, and nothing is accused when it goes on."""
    pid = steady.process.pid
    accused, looks = steady.accused(), steady.watch.looks["seen"]
    os.kill(pid, signal.SIGSTOP)
    try:
        steady.until(lambda: False, 0.6)
        assert not steady.watch.held()
    finally:
        os.kill(pid, signal.SIGCONT)
    steady.until(lambda: False, 0.3)
    assert steady.accused() <= accused | {""}
    assert steady.watch.looks["seen"] == looks


def refused(pid: int, *, native: bool = False) -> list[SeenThread]:
    raise NotAllowedError("grant SYS_PTRACE")


def broken(pid: int, *, native: bool = False) -> list[SeenThread]:
    raise PySpyError("not installed")


@pytest.mark.parametrize(("look", "outcome"), [(refused, "refused"), (broken, "failed")])
def test_a_hang_is_reported_without_a_look(
    start: Callable[..., Watched],
    caplog: pytest.LogCaptureFixture,
    look: Dump,
    outcome: str,
) -> None:
    """With what to grant where the kernel refuses; and no line is made up."""
    watched = start(look=look)
    watched.do("/hang")
    pid = str(watched.process.pid)
    assert watched.until(lambda: watched.watch.held().get(pid, 0.0) > 1.2)
    (stall,) = watched.watch.stalls()
    assert (stall["cause"], stall["location"]) == ("unknown", "")
    assert stall["evidence"].get("refused", "") == ("grant SYS_PTRACE" if look is refused else "")
    assert set(watched.watch.looks) == {outcome}
    assert f"worker {pid} hangs" in caplog.text
    assert ("grant SYS_PTRACE" in caplog.text) == (look is refused)


def test_looks_are_limited(start: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that stalls all the time is not made worse; that it does is recorded."""
    monkeypatch.setattr("loopscope.sentinel.watch._LOOKS_A_MINUTE", 2)
    watched = start()
    for _ in range(4):
        watched.after("/block/0.2")
    assert watched.watch.looks["limited"] >= 2
    assert watched.watch.looks["seen"] + watched.watch.looks["late"] == 2
    assert len(watched.watch.stalls()) == 4


def test_looks_that_fail_are_not_taken_again_and_again(
    start: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each may take seconds, in which nobody else is watched."""
    monkeypatch.setattr("loopscope.sentinel.hang.LOOKS", (0.03, 0.05, 0.07, 0.09, 0.11, 0.13))
    watched = start(look=broken)
    watched.do("/hang")
    assert watched.until(lambda: watched.watch.looks.total() >= 5)
    assert watched.watch.looks["failed"] == 3
    assert watched.watch.looks["limited"] >= 2


def sees_no_c(pid: int, *, native: bool = False) -> list[SeenThread]:
    if native:
        raise PySpyError("no symbols")
    return dump(pid)


def test_c_code_that_cannot_be_seen_costs_nothing_else(
    start: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was seen without stopping the process stands."""
    monkeypatch.setattr("loopscope.sentinel.watch._NATIVE_AFTER", 0.2)
    watched = start(look=sees_no_c)
    watched.do("/hang")
    assert watched.until(lambda: any(stall["route"] for stall in watched.watch.stalls()))
    assert watched.until(lambda: watched.watch.looks["seen"] >= 3)
    assert not watched.watch.looks["failed"]


def test_what_lasts_is_looked_at_however_much_there_was_before(
    start: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short stalls may use up their looks: those that are kept back are for a hang."""
    monkeypatch.setattr("loopscope.sentinel.watch._LOOKS_A_MINUTE", 0)
    watched = start()
    stalls = watched.after("/block/2.0")
    assert watched.watch.looks["limited"] >= 1
    assert any(stall["location"].endswith("block") for stall in stalls)
