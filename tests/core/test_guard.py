"""The lock of who watches over a directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from loopscope.core.guard import Guard, guardian


def test_nobody_watches_over_a_new_directory(tmp_path: Path) -> None:
    """Nor over one that is not there."""
    assert guardian(tmp_path) is None
    assert guardian(tmp_path / "missing") is None


def test_only_one_has_the_lock(tmp_path: Path) -> None:
    """Until it lets go of it; what is left of it is no sign of life."""
    guard = Guard.take(tmp_path)
    assert guard is not None
    assert Guard.take(tmp_path) is None
    assert guardian(tmp_path) == 0
    guard.sign()
    assert guardian(tmp_path) == os.getpid()
    guard.close()
    assert guardian(tmp_path) is None
    again = Guard.take(tmp_path)
    assert again is not None
    assert guardian(tmp_path) == 0, "whoever was there before has signed with another number"
    again.close()


def test_who_is_handed_the_lock_keeps_it(tmp_path: Path) -> None:
    """Through the death of who took it, and until its own."""
    guard = Guard.take(tmp_path)
    assert guard is not None
    wait = [sys.executable, "-c", "import signal; print(flush=True); signal.pause()"]
    number = guard.fileno()
    with subprocess.Popen(wait, pass_fds=(number,), stdout=subprocess.PIPE) as child:
        guard.close()
        assert child.stdout is not None and child.stdout.readline()
        assert guardian(tmp_path) == 0
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert guardian(tmp_path) is None


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Nobody's file is locked or written to by a name that somebody has prepared."""
    target = tmp_path / "target"
    target.write_text("precious")
    (tmp_path / "sentinel").symlink_to(target)
    assert guardian(tmp_path) is None
    try:
        Guard.take(tmp_path)
    except OSError:
        assert target.read_text() == "precious"
    else:
        raise AssertionError
