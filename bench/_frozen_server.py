"""The service that freezes, under a real server, and whoever asks it and its sentinel questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Self

import psutil

from _net import free_port

_HERE = Path(__file__).resolve().parent
_PATIENCE = 60.0
"""Seconds until what should happen counts as not happening."""
_KEEP_ALIVE = "600"
_PAUSE = 0.01
"""Seconds between two requests of those that keep a loop busy."""


class Server:
    """One service with `workers` processes (0: uvicorn itself is the only one) on `loop`."""

    def __init__(self, loop: str, workers: int, folder: Path, *, sentinel: bool = True) -> None:
        self.port, self.admin = free_port(), free_port()
        self.workers = max(1, workers)
        self.log = folder / "log"
        environ = {name: text for name, text in os.environ.items() if "LOOPSCOPE" not in name}
        with self.log.open("wb") as said:
            self._process = subprocess.Popen(
                _command(self.port, loop, workers),
                cwd=_HERE,
                env=environ
                | {
                    "LOOPSCOPE_SENTINEL": "1" if sentinel else "0",
                    "LOOPSCOPE_LISTEN": f"127.0.0.1:{self.admin}",
                    "TMPDIR": str(folder),
                    "PYTHONPATH": os.pathsep.join((str(_HERE), os.environ.get("PYTHONPATH", ""))),
                },
                stdout=said,
                stderr=said,
            )
        self.pid = self._process.pid
        self._directory = folder

    @classmethod
    @contextmanager
    def running(cls, loop: str, workers: int = 0, *, sentinel: bool = True) -> Iterator[Self]:
        """One that is ready, and gone afterwards with all that it has started."""
        with tempfile.TemporaryDirectory(prefix="frozen-") as folder:
            server = cls(loop, workers, Path(folder), sentinel=sentinel)
            try:
                server._until_ready()
                yield server
            finally:
                server._end()

    def _until_ready(self) -> None:
        await_that(lambda: bool(self._ready_pids()), "the service answers", self)
        if self.workers > 1 or self.has_sentinel:  # else there is no group to count
            await_that(lambda: self.figure("loopscope_workers") >= self.workers, "all work", self)
        await_that(lambda: not self.has_sentinel or bool(self.sentinel()), "it is watched", self)

    def _ready_pids(self) -> list[int]:
        with suppress(OSError, HTTPException):
            return [self.ask("/ready")["pid"]]
        return []

    @property
    def has_sentinel(self) -> bool:
        return "LOOPSCOPE_SENTINEL=1" in _environ(self.pid)

    def ask(self, path: str) -> Any:
        """What whichever worker says to `path`, over a connection of its own."""
        with talk(self.port) as ask:
            return ask(path)

    def said_by_admin(self, path: str) -> Any:
        """What the sentinel, or whoever else answers for all, says to `path`."""
        with talk(self.admin) as ask:
            return ask(path)

    @contextmanager
    def to(self, pid: int) -> Iterator[Callable[..., Any]]:
        """A connection to one of several workers."""
        for _ in range(500):
            with talk(self.port) as ask:
                if ask("/ready")["pid"] == pid:
                    yield ask
                    return
        raise RuntimeError(f"worker {pid} does not answer")

    @contextmanager
    def busy(self, pid: int) -> Iterator[None]:
        """Requests to that worker, one after the other."""
        done = threading.Event()

        def go_on() -> None:
            with self.to(pid) as ask:
                while not done.wait(_PAUSE):
                    ask("/ready")

        client = threading.Thread(target=go_on, name="client")
        client.start()
        try:
            yield
        finally:
            done.set()
            client.join()

    def metrics(self) -> str:
        """What is published; nothing while nobody does."""
        with suppress(OSError, HTTPException), talk(self.admin) as ask:
            return str(ask("/metrics"))
        return ""

    def figure(self, name: str, *labels: str) -> float:
        """The sum of a metric's samples that have all of `labels`, each as `name="value"`."""
        lines = (
            line
            for line in self.metrics().splitlines()
            if line.startswith((name + "{", name + " "))
        )
        return sum(
            float(line.split()[-1]) for line in lines if all(each in line for each in labels)
        )

    def worker_pids(self) -> list[int]:
        """The processes that serve."""
        if self.workers == 1:
            return [self.pid]
        return [child.pid for child in psutil.Process(self.pid).children()]

    def sentinel(self) -> int:
        """The process that watches them; 0 if there is none."""
        for path in self._directory.glob("loopscope-*/*/sentinel"):
            with suppress(OSError, ValueError):
                return int(path.read_text())
        return 0

    def _end(self) -> None:
        watching = self.sentinel()
        left = [psutil.Process(self.pid)] if psutil.pid_exists(self.pid) else []
        left += [child for process in left for child in process.children(recursive=True)]
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        until = time.monotonic() + 10.0
        while watching and psutil.pid_exists(watching) and time.monotonic() < until:
            time.sleep(0.05)


def _environ(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_text(errors="replace").replace("\0", "\n")


def _command(port: int, loop: str, workers: int) -> list[str]:
    app = "_frozen_service:app"
    if not workers:
        return [
            sys.executable, "-m", "uvicorn", "--port", str(port), "--loop", loop, "--log-level",
            "warning", "--timeout-keep-alive", _KEEP_ALIVE, app,
        ]  # fmt: skip
    return [
        sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{port}", "--workers", str(workers),
        "-k", f"_frozen_worker.{loop.capitalize()}Worker", "--keep-alive", _KEEP_ALIVE,
        "--timeout", "600", "--no-control-socket", "--log-level", "warning", app,
    ]  # fmt: skip


@contextmanager
def talk(port: int) -> Iterator[Callable[..., Any]]:
    """A connection that is kept; what it is asked for comes as JSON, or else as text."""
    connection = HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)

    def ask(path: str, body: object = None) -> Any:
        if body is None:
            connection.request("GET", path)
        else:
            connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        said = response.read().decode()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {said}")
        is_json = (response.getheader("content-type") or "").startswith("application/json")
        return json.loads(said) if is_json else said

    try:
        yield ask
    finally:
        connection.close()


@contextmanager
def asked_in_background(ask: Callable[..., Any], path: str) -> Iterator[None]:
    """A request on its way, answered in the end, or never: who is asked may be killed."""

    def send() -> None:
        with suppress(OSError, HTTPException):
            ask(path)

    client = threading.Thread(target=send, name="client")
    client.start()
    try:
        yield
    finally:
        client.join()


def await_that(holds: Callable[[], bool], what: str, server: Server) -> float:
    """Wait until something holds; how many seconds that took."""
    began = time.monotonic()
    while not holds():
        if time.monotonic() - began > _PATIENCE:
            raise RuntimeError(f"it was not to be that {what}:\n{server.log.read_text()}")
        time.sleep(0.02)
    return time.monotonic() - began
