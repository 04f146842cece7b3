"""Looking into real processes from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from loopscope.sentinel import pyspy
from loopscope.sentinel.pyspy import (
    FORMATS,
    Format,
    GoneError,
    NotAllowedError,
    NothingSeenError,
    PySpyError,
    SeenThread,
    dump,
    executable,
    record,
)
from tests.e2e.running import eventually
from tests.sentinel import targets

pytestmark = targets.can_look


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "target.py"


@pytest.fixture
def thief(script: Path) -> Iterator[int]:
    """A process in which a thread keeps the GIL."""
    with targets.running(targets.THIEF, script) as process:
        assert eventually(lambda: bool(owners(process.pid)))
        yield process.pid


@pytest.fixture
def busy(script: Path) -> Iterator[int]:
    with targets.running(targets.BUSY, script) as process:
        yield process.pid


def owners(pid: int) -> list[SeenThread]:
    """The threads that hold the GIL with something to show for it."""
    return [thread for thread in dump(pid, timeout=30) if thread.owns_gil and thread.frames]


def state(pid: int) -> str:
    return str(psutil.Process(pid).status())


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """Let a program of ours be called in the place of py-spy."""
    program = folder / "py-spy"
    program.write_text(f"#!{sys.executable}\n{body}")
    program.chmod(0o700)
    monkeypatch.setattr(pyspy, "executable", lambda: str(program))


def test_the_thread_that_keeps_the_gil_is_named(thief: int) -> None:
    """Nobody in the process could say so: the one who would is waiting for the GIL."""
    (owner,) = owners(thief)
    assert owner.name == "thief"
    assert owner.native_id in {thread.id for thread in psutil.Process(thief).threads()}
    assert owner.active


def test_the_line_that_backtracks_is_named(thief: int, script: Path) -> None:
    """In C code the innermost frames are the library's, and above them is the caller's line."""
    (owner,) = owners(thief)
    ours = [frame for frame in owner.frames if frame.file == str(script)]
    assert [frame.function for frame in ours] == ["backtrack"]
    assert "re.match" in script.read_text().splitlines()[ours[0].line - 1]
    assert owner.frames[-1].function == "match"


def test_frames_begin_with_the_outermost(thief: int) -> None:
    """A stack reads like a call: who calls is before who is called."""
    (waiting,) = (thread for thread in dump(thief, timeout=30) if not thread.owns_gil)
    assert (waiting.name, waiting.native_id) == ("MainThread", thief)
    assert waiting.frames[0].function == "<module>"


@pytest.mark.skipif(sys.platform != "linux", reason="no native frames elsewhere")
def test_native_frames_are_there_where_asked_for(thief: int) -> None:
    """They say which C function it is, and the process runs on after."""
    (owner,) = (thread for thread in dump(thief, native=True, timeout=60) if thread.owns_gil)
    python = {frame.function for frame in owners(thief)[0].frames}
    assert {frame.function for frame in owner.frames} > python
    assert state(thief) != psutil.STATUS_STOPPED


def test_a_stopped_process_can_be_looked_at_and_stays_stopped(busy: int) -> None:
    """Whoever stopped it had reasons; it is not for us to wake it, nor to attach to it."""
    os.kill(busy, signal.SIGSTOP)
    assert eventually(lambda: state(busy) == psutil.STATUS_STOPPED)
    (thread,) = dump(busy, timeout=30)
    assert "spin" in {frame.function for frame in thread.frames}
    with pytest.raises(PySpyError, match="is stopped"):
        dump(busy, native=True)
    assert state(busy) == psutil.STATUS_STOPPED


ATTACHES_AND_HANGS = """
import ctypes, sys, time
libc = ctypes.CDLL(None)
libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
libc.ptrace(16, int(sys.argv[-1]), None, None)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="about Linux' ptrace")
def test_a_process_runs_on_when_its_tracer_is_killed(
    busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The death of a tracer may stop the traced, which would be our doing."""
    stand_in(monkeypatch, tmp_path, ATTACHES_AND_HANGS)
    with pytest.raises(PySpyError, match="too long"):
        dump(busy, native=True, timeout=2.0)
    before = sum(psutil.Process(busy).cpu_times()[:2])
    assert eventually(lambda: sum(psutil.Process(busy).cpu_times()[:2]) > before)


ATTACHES = ATTACHES_AND_HANGS.replace("time.sleep", "print('attached', flush=True); time.sleep")


@pytest.mark.skipif(sys.platform != "linux", reason="about Linux' ptrace")
def test_a_debugger_is_in_the_way_of_native_frames_only(busy: int) -> None:
    """There can be one tracer, and it is named; reading goes on beside it."""
    command = [sys.executable, "-c", ATTACHES, str(busy)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as debugger:
        try:
            assert debugger.stdout is not None
            assert debugger.stdout.readline() == "attached\n"
            with pytest.raises(NotAllowedError, match=f"process {debugger.pid} is attached to it"):
                dump(busy, native=True, timeout=30)
            assert dump(busy, timeout=30)
        finally:
            debugger.kill()


def test_a_process_that_is_gone_is_said_to_be(busy: int) -> None:
    """Also if its parent has not asked for its exit code yet."""
    os.kill(busy, signal.SIGKILL)
    assert eventually(lambda: state(busy) == psutil.STATUS_ZOMBIE)
    with pytest.raises(GoneError, match=f"no process {busy}"):
        dump(busy)


def test_a_process_that_ends_while_looked_at_ends_the_look(busy: int) -> None:
    """What was seen until then is the profile, and nobody waits for the rest of the time."""
    killer = threading.Timer(1.0, os.kill, (busy, signal.SIGKILL))
    killer.start()
    began = time.monotonic()
    try:
        assert b"spin" in record(busy, 60)
    except GoneError:
        pass
    finally:
        killer.join()
    assert time.monotonic() - began < 60


def test_what_is_no_python_is_refused_in_one_line() -> None:
    """py-spy's own words, without the backtrace it adds."""
    with subprocess.Popen(["sleep", "600"]) as process:
        try:
            with pytest.raises(PySpyError, match=f"process {process.pid}: Fail") as caught:
                dump(process.pid, timeout=30)
        finally:
            process.kill()
    assert "\n" not in str(caught.value)


def test_one_that_takes_too_long_is_killed(
    busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time it gets is all it gets, and no child stays behind."""
    stand_in(monkeypatch, tmp_path, "import time; time.sleep(600)")
    with pytest.raises(PySpyError, match="too long"):
        dump(busy, timeout=0.1)
    assert [child.pid for child in psutil.Process().children()] == [busy]


@pytest.mark.parametrize(
    ("body", "match"),
    [
        ("print('[' * 100_000, flush=True); import time; time.sleep(600)", "more than 1000 bytes"),
        ("print('[{}]')", "cannot be understood"),
        ("print('nonsense')", "cannot be understood"),
        ("raise SystemExit(3)", "ended with code 3"),
        (
            "import sys; sys.exit('Error: this\\n\\nCaused by:\\n    0: so\\n    1: that')",
            "this: that",
        ),
    ],
)
def test_output_that_is_not_py_spys_is_an_error(
    busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, match: str
) -> None:
    """Nothing it may print gets further than a sentence."""
    monkeypatch.setattr(pyspy, "_MOST_DUMP", 1000)
    stand_in(monkeypatch, tmp_path, body)
    with pytest.raises(PySpyError, match=match):
        dump(busy, timeout=30)


FAILS_FIRST = """
import pathlib, sys
tries = pathlib.Path(__file__).with_name("tries")
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
if len(tries.read_text()) <= {count}:
    sys.exit("Error: Failed to get stack traces\\n\\nCaused by:\\n    0: Bad address")
print("[]")
"""


def test_a_look_at_what_changed_meanwhile_is_repeated(
    busy: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few times: what goes wrong every time is an error."""
    stand_in(monkeypatch, tmp_path, FAILS_FIRST.format(count=2))
    assert dump(busy, timeout=30) == []
    stand_in(monkeypatch, tmp_path, FAILS_FIRST.format(count=1000))
    with pytest.raises(PySpyError, match="Failed to get stack traces: Bad address"):
        dump(busy, timeout=30)


def test_it_is_found_beside_python_or_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment's own comes first; without any, the error says what to install."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(PySpyError, match="not installed"):
        executable()
    for folder in (tmp_path / "path", tmp_path):
        folder.mkdir(exist_ok=True)
        (folder / "py-spy").touch(mode=0o755)
        assert executable() == str(folder / "py-spy")


def told(profile: bytes, format: Format) -> Any:
    return json.loads(profile) if format == "speedscope" else profile.decode()


@pytest.mark.parametrize("format", FORMATS)
def test_a_profile_comes_in_every_format(busy: int, format: Format) -> None:
    """Each names the function that was running, and the thread it ran in."""
    found = told(record(busy, 1, format=format), format)
    if format == "speedscope":
        assert "spin" in {frame["name"] for frame in found["shared"]["frames"]}
        assert "MainThread" in found["profiles"][0]["name"]
    else:
        assert "spin" in found
        assert "MainThread" in found
    assert found[:5] == "<?xml" if format == "flamegraph" else True


def test_a_profile_of_waiting_is_to_be_asked_for(script: Path) -> None:
    """Idle threads are left out unless asked for; those without the GIL on request."""
    with targets.running(targets.THIEF, script) as process:
        assert eventually(lambda: bool(owners(process.pid)))
        with_idle = record(process.pid, 1, idle=True).decode().splitlines()
        holders = record(process.pid, 1, gil=True).decode().splitlines()
    assert {line.split(";")[0].rpartition(" ")[2] for line in with_idle} == {"MainThread", "thief"}
    assert {line.split(";")[0].rpartition(" ")[2] for line in holders} == {"thief"}


@pytest.mark.parametrize("format", FORMATS)
def test_a_profile_of_nothing_is_an_error_that_says_so(script: Path, format: Format) -> None:
    """Of a process that only waits, unless its waiting was asked for."""
    asleep = targets.running(targets.ASLEEP, script)
    with asleep as process, pytest.raises(NothingSeenError, match="idle threads"):
        record(process.pid, 1, format=format)


@pytest.mark.parametrize("seconds", [0, -1, 301, float("nan")])
def test_a_profile_has_an_end(busy: int, seconds: float) -> None:
    """What is no time to wait for is refused before anything is started."""
    with pytest.raises(ValueError, match="allowed: above 0 and up to 300"):
        record(busy, seconds)


def test_a_profile_nobody_waits_for_is_given_up(busy: int) -> None:
    """Its process ends with the interest in it."""
    asked: list[bool] = []

    def is_wanted() -> bool:
        asked.append(True)
        return len(asked) < 3

    with pytest.raises(PySpyError, match="nobody waits"):
        record(busy, 60, is_wanted=is_wanted)
    assert [child.pid for child in psutil.Process().children()] == [busy]


def test_nothing_stays_open(busy: int) -> None:
    """Whether it went well or not."""
    before = psutil.Process().num_fds()
    dump(busy, timeout=30)
    with pytest.raises(PySpyError):
        dump(busy, timeout=0.0001)
    assert psutil.Process().num_fds() == before
