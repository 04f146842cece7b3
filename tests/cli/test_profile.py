"""``loopscope profile``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from loopscope.sentinel.pyspy import FORMATS, SUFFIXES, Format
from tests.admin.test_listener import running as listening
from tests.e2e.running import free_port
from tests.sentinel import targets


def profile(folder: Path, *options: str, **environ: str) -> subprocess.CompletedProcess[bytes]:
    """The command, run in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "loopscope", "profile", *options],
        cwd=folder, env={**os.environ, **environ}, capture_output=True, timeout=60, check=False,
    )  # fmt: skip


def sentence(found: subprocess.CompletedProcess[bytes]) -> str:
    """What was said on stderr: one line, and nothing on stdout."""
    said = found.stderr.decode()
    assert found.stdout == b""
    assert said.count("\n") == 1, said
    return said


@pytest.fixture
def busy(tmp_path: Path) -> Iterator[int]:
    with targets.running(targets.BUSY, tmp_path / "target.py") as process:
        yield process.pid


@targets.can_look
@pytest.mark.parametrize("format", FORMATS)
def test_a_process_is_recorded_into_a_file(busy: int, tmp_path: Path, format: Format) -> None:
    """Its name is the last thing said, and it shows what the process was doing."""
    found = profile(tmp_path, "--pid", str(busy), "--seconds", "1", "--format", format)
    assert (found.returncode, found.stderr) == (0, b"")
    name = found.stdout.decode().split()[-1]
    assert name == f"profile.{SUFFIXES[format]}"
    written = (tmp_path / name).read_text()
    assert "spin" in written
    assert json.loads(written)["profiles"] if format == "speedscope" else True


@targets.can_look
def test_a_dash_is_stdout(busy: int, tmp_path: Path) -> None:
    """And then nothing else is on it."""
    options = ["--seconds", "1", "--format", "folded", "-o", "-"]
    found = profile(tmp_path, "--pid", str(busy), *options)
    lines = found.stdout.decode().splitlines()
    assert lines
    assert all(line.rpartition(" ")[2].isdigit() for line in lines)
    assert "spin" in lines[0]


@targets.can_look
def test_an_agent_can_be_asked_instead(tmp_path: Path) -> None:
    """It knows its workers, and is shown its token."""
    url = listening(token="secret")
    enough = threading.Event()

    def spin_here() -> None:
        while not enough.is_set():
            sum(range(1000))

    thread = threading.Thread(target=spin_here)
    thread.start()
    options = ["--url", url, "--seconds", "1", "--worker", str(os.getpid()), "--format", "folded"]
    try:
        found = profile(tmp_path, *options, "-o", "mine.folded", LOOPSCOPE_TOKEN="secret")
        assert (found.returncode, found.stderr) == (0, b"")
        assert "spin_here" in (tmp_path / "mine.folded").read_text()
    finally:
        enough.set()
        thread.join()


def test_what_an_agent_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    """Be it for the token or for a process that is no worker."""
    url = listening(token="secret")
    refused = profile(tmp_path, "--url", url)
    assert refused.returncode == 1
    assert "answers 401: This needs the header" in sentence(refused)
    unknown = profile(tmp_path, "--url", url, "--token", "secret", "--worker", "1")
    assert unknown.returncode == 1
    assert "answers 404: '1' is no worker of this service" in sentence(unknown)
    assert list(tmp_path.iterdir()) == []


@contextmanager
def answering(status: int, body: bytes, **headers: str) -> Iterator[str]:
    """The address of some server that says one thing to all."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (400, b"seconds is '9'; allowed: fewer\n", 2, "answers 400: seconds is '9'"),
        (503, b"\x1b[31mgrant SYS_PTRACE\x07\nand more", 1, "answers 503: [31mgrant SYS_PTRACE\n"),
        (500, b"", 1, "answers 500: Internal Server Error"),
        (302, b"", 1, "answers 302: Found"),
    ],
)
def test_a_refusal_is_one_line_that_steers_no_terminal(
    tmp_path: Path, status: int, body: bytes, code: int, said: str
) -> None:
    """Whatever it is that answers; a token is not carried on to somewhere else."""
    with answering(status, body, location="http://127.0.0.1:9/") as url:
        found = profile(tmp_path, "--url", url, "--token", "secret")
    assert found.returncode == code
    assert said in sentence(found)


def test_no_agent_is_a_sentence(tmp_path: Path) -> None:
    """That nobody listens there, and where "there" is, settings included."""
    address = f"127.0.0.1:{free_port()}"
    found = profile(tmp_path, LOOPSCOPE_LISTEN=address)
    assert found.returncode == 1
    assert sentence(found) == f"loopscope: http://{address} cannot be reached: Connection refused\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--pid", "1", "--worker", "2"], "--worker is for --url"),
        (["--url", "file:///etc/passwd"], "file:///etc/passwd is no address"),
        (["--pid", "1", "-o", "missing/profile.svg"], "missing/profile.svg cannot be written"),
        (["--pid", "1", "-o", "."], ". cannot be written"),
        (["--pid", "1", "--url", "http://127.0.0.1:9"], "not allowed with"),
        (["--pid", "1", "--seconds", "301"], "301 is not from 1 to 300"),
        (["--pid", "1", "--format", "pprof"], "invalid choice: 'pprof'"),
        (["--pid", "one"], "invalid int value: 'one'"),
    ],
)
def test_a_wrong_question_is_refused_at_once(tmp_path: Path, options: list[str], said: str) -> None:
    """With exit code 2, before anything is recorded or written."""
    found = profile(tmp_path, *options)
    assert (found.returncode, found.stdout) == (2, b"")
    assert said in found.stderr.decode()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_is_gone_is_a_sentence(tmp_path: Path) -> None:
    """With exit code 1, and no file."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    found = profile(tmp_path, "--pid", str(ended.pid))
    assert found.returncode == 1
    assert sentence(found) == f"loopscope: there is no process {ended.pid}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="about Linux' rules")
def test_a_refused_look_is_a_sentence(tmp_path: Path) -> None:
    """The kernel's reason, and what to grant."""
    with targets.running(targets.ASLEEP, tmp_path / "target.py") as process:
        code, said = targets.profiled_by_nobody(process.pid)
    assert code == 1
    assert said.startswith(f"loopscope: the kernel refuses a look into process {process.pid}: ")
    assert "--cap-add SYS_PTRACE" in said
    assert said.count("\n") == 1
