"""How processes have ended, told to somebody who is not their parent's parent even."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from errno import ENOTTY
from pathlib import Path

import pytest

from loopscope.sources import exits
from loopscope.sources.exits import Exits


def can_be_told() -> bool:
    """Whether this kernel tells an exit status to those who have a pidfd."""
    child = subprocess.Popen(["true"])
    try:
        file = os.pidfd_open(child.pid)
    except (AttributeError, OSError):
        return False
    finally:
        child.wait()
    try:
        return exits._status(file) == "0"
    except OSError:
        return False
    finally:
        os.close(file)


TOLD = pytest.mark.skipif(not can_be_told(), reason="needs Linux 6.15")


@pytest.fixture
def watched() -> Iterator[Exits]:
    found = Exits()
    yield found
    found.close()


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "100"])


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@TOLD
@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (signal.SIGKILL, "SIGKILL"),
        (signal.SIGSEGV, "SIGSEGV"),
        (signal.SIGRTMIN + 3, f"signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_a_signal_is_named(watched: Exits, ending: int, status: str) -> None:
    """Who died of one is counted by its name, or its number where it has none."""
    child = sleeper()
    watched.follow([child.pid])
    child.send_signal(ending)
    child.wait()
    watched.follow([])
    assert watched.counts == {status: 1}


@TOLD
@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_is_what_it_is(watched: Exits, code: int) -> None:
    """Who ended by itself is counted by what it said."""
    script = f"import sys; sys.stdin.read(); sys.exit({code})"
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    watched.follow([child.pid])
    child.communicate()
    watched.follow([])
    assert watched.counts == {str(code): 1}


@TOLD
def test_a_grandchild_is_told_of_as_well(watched: Exits) -> None:
    """Its parent has taken the exit status already, and it is somebody else's child."""
    script = "import subprocess; c = subprocess.Popen(['sleep', '100']); print(c.pid); c.wait()"
    parent = subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    watched.follow([pid])
    os.kill(pid, signal.SIGKILL)
    parent.communicate()
    watched.follow([])
    assert watched.counts == {"SIGKILL": 1}


@TOLD
def test_an_end_counts_once_its_parent_knows(watched: Exits) -> None:
    """Not before, not twice, and then nothing of it is left open."""
    before = open_files()
    child = sleeper()
    watched.follow([child.pid])
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is a zombie
    watched.follow([child.pid])
    assert watched.families() == []
    child.wait()
    for _ in range(3):
        watched.follow([child.pid])
    (family,) = watched.families()
    assert {labels: family.values(raw) for labels, raw in family.rows.items()} == {
        ("SIGKILL",): [1]
    }
    assert open_files() == before


@TOLD
def test_who_is_followed_twice_ends_once(watched: Exits) -> None:
    """Workers are named anew at every look; each takes one descriptor."""
    child = sleeper()
    watched.follow([child.pid])
    files = open_files()
    watched.follow([child.pid, child.pid])
    assert open_files() == files
    child.kill()
    child.wait()
    watched.follow([])
    assert watched.counts == {"SIGKILL": 1}


def test_where_nothing_is_told_nothing_is_said(
    watched: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Older kernels do not know the question: no row, and no file left open."""

    def unknown(*_: object) -> None:
        raise OSError(ENOTTY, "unknown")

    monkeypatch.setattr("loopscope.sources.exits.fcntl.ioctl", unknown)
    child = sleeper()
    before = open_files()
    watched.follow([child.pid])
    assert open_files() == before
    child.kill()
    child.wait()
    watched.follow([])
    assert watched.families() == []


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfds")
def test_a_kernel_that_forgets_its_dead_is_not_asked_for_ever(
    watched: Exits, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux 6.13 knows the question, but of who has ended only that: such a file is closed."""
    before = open_files()
    child = sleeper()
    monkeypatch.setattr(exits, "_info", lambda _: (0, 0))
    watched.follow([child.pid])
    assert open_files() == before + 1

    def gone(_: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(exits, "_info", gone)
    child.kill()
    child.wait()
    watched.follow([])
    assert open_files() == before
    assert watched.families() == []


def test_without_pidfds_nobody_is_followed(watched: Exits, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    watched.follow([os.getpid()])
    assert watched.families() == []


def test_one_that_is_gone_already_is_not_followed(watched: Exits) -> None:
    """It may be anybody's number by now."""
    child = subprocess.Popen(["true"])
    child.wait()
    watched.follow([child.pid])
    assert watched.families() == []
