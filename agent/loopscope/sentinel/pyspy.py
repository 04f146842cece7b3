"""Looking into a Python process from outside: a wrapper round the ``py-spy`` command.

py-spy reads another process' memory, so it needs neither its GIL nor its help, and it runs in a
child of its own: whatever goes wrong with it does so there. It is never trusted further than that:
it gets so many seconds and so many bytes, and is killed when it takes more.

Normally it only reads, while the process runs on (``--nonblocking``). Native frames are to be had
only with the process at rest, for which py-spy attaches to it as debuggers do. A tracer that is
killed just then may leave the process stopped, for the kernel delivers the stop that it was about
to report. So whoever kills it looks first whether it was attached, and lets the process go on then;
which would be wrong if somebody else had stopped it, so one that is stopped is not attached to.

What is read while it changes may make no sense, and then py-spy gives up: of a process that is busy
with Python code on several threads every fifth look was seen to fail so. The next one mostly does
not, so there are a few.

What it writes comes through a pipe, profiles included: no file, so none that could stay behind.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import psutil

from loopscope.sentinel.refusal import reason

Format = Literal["flamegraph", "speedscope", "folded"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""What ``record`` makes: an SVG, speedscope's JSON, or lines of ``outer;inner count``."""

SUFFIXES: dict[Format, str] = {
    "flamegraph": "svg",
    "speedscope": "speedscope.json",
    "folded": "folded",
}
"""How the name of a file in each format ends."""

MOST_SECONDS = 300.0
"""The longest time that ``record`` looks for."""

_MOST_DUMP = 16 * 1024 * 1024
_MOST_RECORD = 64 * 1024 * 1024
"""Bytes of output that are read; py-spy is killed where there are more."""
_MOST_COMPLAINT = 64 * 1024
"""Bytes read of what it says on stderr; the rest is thrown away."""
_CHUNK = 64 * 1024
_LEEWAY = 10.0
"""Seconds that ``record`` may take on top of its own, to begin and to write down what it has."""
_POLL = 0.2
"""Seconds between two looks at whether somebody has lost interest."""
_SETTLING = 1.0
"""Seconds in which a process whose tracer was killed has either stopped or run on."""

_RAW = {"folded": "raw"}
"""py-spy's names for formats, where they are not ours."""
_EMPTY = b'"profiles":[]'
"""Among the first bytes of a profile for speedscope in which nothing is."""
_HEAD = 256
_TRIES = 5
"""Looks at a process that changes while it is looked at."""
_TORN = ("failed to get stack traces", "failed to find a python interpreter")
"""What py-spy complains of then."""
_REFUSED = ("permission denied", "operation not permitted")


class PySpyError(Exception):
    """py-spy could not do it: not installed, too slow, or a Python it does not know."""


class _TornError(PySpyError):
    """What was read made no sense, as the process went on meanwhile."""


class GoneError(PySpyError):
    """There is no such process, or no longer."""


class NotAllowedError(PySpyError):
    """The kernel does not let us look; the message says what to grant."""


class NothingSeenError(PySpyError):
    """There was nothing of what a profile was to show."""


@dataclass(frozen=True, slots=True)
class SeenFrame:
    """A function being run. ``line`` is 0 where that is not known."""

    function: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class SeenThread:
    """A thread as seen from outside. ``frames`` begin with the outermost."""

    name: str
    native_id: int
    owns_gil: bool
    active: bool
    """Whether it was on a CPU or about to be, as far as py-spy can tell."""
    frames: tuple[SeenFrame, ...]


def dump(pid: int, *, native: bool = False, timeout: float = 2.0) -> list[SeenThread]:
    """What all threads of process ``pid`` are doing now.

    With ``native``, frames of C code too, for which the process stands still meanwhile.
    ``timeout`` is in seconds. Raises ``GoneError``, ``NotAllowedError`` or ``PySpyError``.
    """
    asked = ["dump", "--json", "--native" if native else "--nonblocking"]
    until = time.monotonic() + timeout
    for _ in range(_TRIES - 1):
        with suppress(_TornError):
            return _threads(pid, _Look(pid, native, until, _MOST_DUMP).printed(asked))
    return _threads(pid, _Look(pid, native, until, _MOST_DUMP).printed(asked))


def record(
    pid: int,
    seconds: float,
    *,
    rate: int = 100,
    format: Format = "folded",  # noqa: A002 - what it is called everywhere else
    native: bool = False,
    idle: bool = False,
    gil: bool = False,
    subprocesses: bool = False,
    is_wanted: Callable[[], bool] = lambda: True,
) -> bytes:
    """A profile of process ``pid`` over ``seconds``, rounded up, by ``rate`` looks a second.

    ``idle`` has threads that wait in it too, ``gil`` only those that hold the GIL. It is given up
    as soon as it is not ``is_wanted`` any more.

    Raises ``ValueError`` unless 0 < ``seconds`` <= ``MOST_SECONDS`` and 0 < ``rate``;
    ``GoneError``, ``NotAllowedError``, ``NothingSeenError`` or ``PySpyError``.
    """
    if not 0.0 < seconds <= MOST_SECONDS:
        raise ValueError(f"seconds is {seconds}; allowed: above 0 and up to {MOST_SECONDS:.0f}")
    if rate <= 0:
        raise ValueError(f"rate is {rate}; allowed: above 0")
    asked = ["record", "--format", _RAW.get(format, format), "--rate", str(rate), "--threads"]
    whole = math.ceil(seconds)  # py-spy knows no others
    asked += ["--duration", str(whole), "--native" if native else "--nonblocking"]
    flags = (("--idle", idle), ("--gil", gil), ("--subprocesses", subprocesses))
    asked += [flag for flag, is_set in flags if is_set]
    until = time.monotonic() + whole + _LEEWAY
    body = _Look(pid, native, until, _MOST_RECORD, is_wanted).written(asked)
    if not body or _EMPTY in body[:_HEAD]:
        raise _nothing_seen(pid)
    return body


def executable() -> str:
    """Where ``py-spy`` is: in this environment, or else on the path. Raises ``PySpyError``."""
    for folder in (Path(sys.executable).parent, Path(sysconfig.get_path("scripts"))):
        candidate = folder / "py-spy"
        if os.access(candidate, os.X_OK):
            return str(candidate)
    found = shutil.which("py-spy")
    if found is None:
        raise PySpyError("py-spy is not installed in this environment; pip install py-spy")
    return found


class _Look:
    """One run of py-spy at process ``pid``, with an end to its time and to its output.

    ``until`` is of the monotonic clock, ``most`` in bytes.
    """

    def __init__(
        self,
        pid: int,
        attaches: bool,
        until: float,
        most: int,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> None:
        self._pid = pid
        self._attaches = attaches
        self._began = time.monotonic()
        self._until = until
        self._most = most
        self._is_wanted = is_wanted

    def printed(self, asked: Sequence[str]) -> bytes:
        """What it says on stdout."""
        return self._run([*asked], to_file=False)

    def written(self, asked: Sequence[str]) -> bytes:
        """What it writes to the file that it is given to write to."""
        return self._run([*asked], to_file=True)

    def _run(self, asked: list[str], *, to_file: bool) -> bytes:
        program = executable()
        state = _state(self._pid)
        if state == psutil.STATUS_DEAD:
            raise GoneError(f"there is no process {self._pid}")
        if self._attaches and state == psutil.STATUS_STOPPED:
            raise PySpyError(
                f"process {self._pid} is stopped, and native frames are to be had of running ones "
                "only; without them it can be looked at"
            )
        output, its_output = os.pipe()
        if to_file:
            asked += ["--output", f"/dev/fd/{its_output}"]
        try:
            spy = subprocess.Popen(  # noqa: S603 - no shell, and nothing in it that is not ours
                [program, *asked, "--pid", str(self._pid)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL if to_file else its_output,
                stderr=subprocess.PIPE,
                pass_fds=(its_output,) if to_file else (),
                env={**os.environ, "RUST_BACKTRACE": "0"},
            )
        except OSError as error:
            os.close(output)
            raise PySpyError(f"{program} cannot be started: {error.strerror}") from error
        finally:
            os.close(its_output)
        try:
            body, complaint, code = self._outcome(spy, output)
        finally:
            self._end(spy)
            os.close(output)
        if code != 0:
            raise self._failure(code, complaint.decode(errors="replace"))
        return body

    def _outcome(self, spy: subprocess.Popen[bytes], output: int) -> tuple[bytes, bytes, int]:
        """What it has to say, what it complains of, and its exit code. Raises ``PySpyError``."""
        assert spy.stderr is not None
        with spy.stderr as errors:
            body, complaint = self._read(output, errors.fileno())
        try:
            return body, complaint, spy.wait(_SETTLING)
        except subprocess.TimeoutExpired:
            raise PySpyError("py-spy has said all that it has to say, and does not end") from None

    def _read(self, output: int, errors: int) -> tuple[bytes, bytes]:
        """All that comes, until both are closed. Raises ``PySpyError`` where it is too much."""
        body, complaint = bytearray(), bytearray()
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            selector.register(errors, selectors.EVENT_READ)
            while selector.get_map():
                left = self._until - time.monotonic()
                if left <= 0:
                    took = time.monotonic() - self._began
                    raise PySpyError(f"py-spy took {took:.1f} s at process {self._pid}: too long")
                if not self._is_wanted():
                    raise PySpyError("nobody waits for it any more")
                for key, _ in selector.select(min(left, _POLL)):
                    chunk = os.read(key.fd, _CHUNK)
                    if not chunk:
                        selector.unregister(key.fd)
                    elif key.fd == output:
                        body += chunk
                    elif len(complaint) < _MOST_COMPLAINT:
                        complaint += chunk
                if len(body) > self._most:
                    raise PySpyError(f"py-spy has more than {self._most} bytes to say")
        return bytes(body), bytes(complaint)

    def _end(self, spy: subprocess.Popen[bytes]) -> None:
        """Kill it if it still runs, and let the process go on that it may have stopped."""
        if spy.poll() is not None:
            return
        spy.send_signal(signal.SIGSTOP)  # so that it does not attach once we have looked
        was_attached = self._attaches and _is_traced_by(self._pid, spy.pid)
        spy.kill()
        spy.wait()
        if was_attached:
            _let_go_on(self._pid)

    def _failure(self, code: int, complaint: str) -> PySpyError:
        if _state(self._pid) == psutil.STATUS_DEAD:
            return GoneError(f"process {self._pid} has ended")
        if any(words in complaint.lower() for words in _REFUSED):
            return NotAllowedError(reason(self._pid, attaches=self._attaches))
        if "No stack counts found" in complaint:
            return _nothing_seen(self._pid)
        said = _in_one_line(complaint) or f"it ended with code {code}"
        kind = _TornError if any(words in said.lower() for words in _TORN) else PySpyError
        return kind(f"py-spy cannot look into process {self._pid}: {said}")


def _nothing_seen(pid: int) -> NothingSeenError:
    return NothingSeenError(
        f"process {pid} did nothing of what was asked for; ask for idle threads to see its waiting"
    )


def _threads(pid: int, printed: bytes) -> list[SeenThread]:
    try:
        return [_thread(each) for each in json.loads(printed)]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PySpyError(f"what py-spy said of process {pid} cannot be understood") from error


def _thread(seen: dict[str, Any]) -> SeenThread:
    frames = (SeenFrame(each["name"], each["filename"], each["line"]) for each in seen["frames"])
    return SeenThread(
        name=seen["thread_name"] or "",
        native_id=seen["os_thread_id"] or 0,
        owns_gil=seen["owns_gil"],
        active=seen["active"],
        frames=tuple(frames)[::-1],
    )


def _in_one_line(complaint: str) -> str:
    """The error and the root of it: ``Failed to …: No such file``."""
    said = complaint.partition("Stack backtrace")[0].splitlines()
    lines = [line.strip() for line in said if line.strip()]
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    causes = [line.partition(": ")[2] for line in lines if line[:1].isdigit()]
    return ": ".join([*errors[:1], *causes[-1:]]) if errors else " ".join(lines[:1])


def _state(pid: int) -> str:
    """What psutil calls the state of a process; one of which only the exit code is left is dead."""
    try:
        status = psutil.Process(pid).status()
    except psutil.NoSuchProcess:
        return psutil.STATUS_DEAD
    except psutil.Error:
        return ""
    return psutil.STATUS_DEAD if status == psutil.STATUS_ZOMBIE else status


def _is_traced_by(pid: int, tracer: int) -> bool:
    """Whether ``tracer`` is attached to a thread of process ``pid``. Linux only, else no."""
    needle = f"\nTracerPid:\t{tracer}\n"
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                if needle in (task / "status").read_text(errors="replace"):
                    return True
    return False


def _let_go_on(pid: int) -> None:
    """Wake a process that its tracer's death has stopped; the stop may be yet to come."""
    until = time.monotonic() + _SETTLING
    while time.monotonic() < until:
        if _state(pid) == psutil.STATUS_STOPPED:
            with suppress(psutil.Error):
                psutil.Process(pid).send_signal(signal.SIGCONT)
            return
        time.sleep(0.01)
