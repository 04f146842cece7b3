"""Python processes to look into: each a context manager, gone when its block ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.running import ROOT

NOBODY = 65534

can_look = pytest.mark.skipif(
    sys.platform == "darwin" and os.geteuid() != 0, reason="macOS lets only root look"
)

THIEF = """
import re
import threading


def backtrack():
    re.match("(a+)+$", "a" * 64 + "b")  # keeps the GIL for ages


thread = threading.Thread(target=backtrack, name="thief", daemon=True)
print("ready", flush=True)
thread.start()
thread.join()
"""
"""A thread keeps the GIL, and the main thread wants it."""

BUSY = """
import threading


def spin():
    print("ready", flush=True)
    while True:
        sum(range(1000))


spin()
"""

ASLEEP = """
import time

print("ready", flush=True)
time.sleep(600)
"""

NOT_DUMPABLE = (
    """
import ctypes

ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
"""
    + ASLEEP
)

AS_NOBODY = f"""
import os
import sys

import loopscope.cli  # while its files can still be read
from loopscope.sentinel.pyspy import PySpyError, dump

pid = int(sys.argv[1])
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
"""

LOOK = """
try:
    print("functions", *(frame.function for thread in dump(pid) for frame in thread.frames))
except PySpyError as error:
    print(type(error).__name__, error)
"""

PROFILE = """
sys.exit(loopscope.cli.main(["profile", "--pid", str(pid), "-o", "-"]))
"""


@contextmanager
def running(code: str, path: Path, python: str = sys.executable) -> Iterator[subprocess.Popen[str]]:
    """``code`` as the program ``path``, once it has said that it is ready."""
    path.write_text(code)
    yield from _until_left(subprocess.Popen([python, path], stdout=subprocess.PIPE, text=True))


@contextmanager
def running_as_nobody(code: str) -> Iterator[subprocess.Popen[str]]:
    """``code``, run by the user nobody from the start; skipped where that is not possible."""
    yield from _until_left(
        subprocess.Popen(
            [public_python(), "-c", code],
            stdout=subprocess.PIPE, text=True, cwd="/", user=NOBODY, group=NOBODY, extra_groups=[],
        )
    )  # fmt: skip


def seen_by_nobody(pid: int) -> str:
    """What the user nobody gets to see of process ``pid``: functions, or an error and its type."""
    return _run_as_nobody(LOOK, pid).stdout.strip()


def profiled_by_nobody(pid: int) -> tuple[int, str]:
    """What ``loopscope profile`` ends with for the user nobody: exit code and stderr."""
    found = _run_as_nobody(PROFILE, pid)
    return found.returncode, found.stderr


def _run_as_nobody(code: str, pid: int) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with _public_pyspy() as folder:
        return subprocess.run(
            [sys.executable, "-c", AS_NOBODY + code, str(pid)],
            env={"PATH": str(folder), "PYTHONPATH": f"{ROOT}/agent"},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip


def _until_left(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.send_signal(signal.SIGKILL)


def public_python() -> str:
    """A Python that other users may run: ours may be in somebody's home."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for candidate in (
        os.path.realpath(sys.executable),
        "/usr/bin/python3",
        "/usr/local/bin/python3",
    ):
        command = [candidate, "-c", ""]
        try:
            ran = subprocess.run(
                command, user=NOBODY, group=NOBODY, capture_output=True, check=False, cwd="/"
            )
        except OSError:
            continue
        if ran.returncode == 0:
            return candidate
    pytest.skip("there is no Python here that the user nobody may run")


@contextmanager
def _public_pyspy() -> Iterator[Path]:
    """A folder with a py-spy that other users may run."""
    folder = Path(tempfile.mkdtemp(prefix="loopscope-public-"))
    try:
        folder.chmod(0o755)
        found = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        assert found is not None
        shutil.copy(found, folder)
        yield folder
    finally:
        shutil.rmtree(folder)
