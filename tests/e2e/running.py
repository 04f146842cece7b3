"""A server in a process of its own, and what it publishes about its service."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import httpx
import psutil

from loopscope.core.guard import guardian
from tests.harness import samples

ROOT = Path(__file__).parents[2]
UNMEASURED = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")
"""What has coverage measured in child processes, which takes half of what a server takes to start:
what it would find, tests within the process find as well."""
OUTCOMES = "loopscope_request_outcomes_total"
PATIENCE = 30.0
"""Seconds until what should happen counts as not happening."""

Command = Callable[[int], Sequence[str | Path]]
"""The command line of a server on the given port."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether ``condition`` comes to hold."""
    until = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def has_ended(process: psutil.Process) -> bool:
    """Whether ``process`` is gone, or would be if its parent looked after it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def send_and_leave(port: int, path: str, read: int = 0) -> None:
    """Ask for ``path`` and close the connection after ``read`` bytes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if read:
            connection.recv(read)
        else:
            time.sleep(0.1)


def _sum(text: str, name: str, labels: dict[str, str]) -> float:
    return sum(float(sample.value) for sample in samples(text, name, labels))


class Running:
    """A server that answers ``/ready``; figures are on ``admin``, what it says is in ``log``."""

    def __init__(self, command: Command, log: Path, **environ: str) -> None:
        self.port, self.admin, self.log = free_port(), free_port(), log
        # what workers share is in a folder of its own, and gone with the test's
        listen = {"LOOPSCOPE_LISTEN": f"127.0.0.1:{self.admin}", "TMPDIR": str(log.parent)}
        self._temporary = Path(environ.get("TMPDIR", log.parent))
        inherited = {name: os.environ[name] for name in os.environ.keys() - UNMEASURED}
        with log.open("wb") as said:
            self.process = subprocess.Popen(
                command(self.port),
                env={**inherited, **listen, **environ},
                cwd=ROOT,
                stdout=said,
                stderr=said,
            )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE)
        self.scraper = httpx.Client(base_url=f"http://127.0.0.1:{self.admin}", timeout=PATIENCE)
        self._before = ""
        if not eventually(self._is_ready):
            self.end()
            raise AssertionError(f"the service did not start:\n{self.said}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def said(self) -> str:
        """Everything the server wrote to its log so far."""
        return self.log.read_text()

    @property
    def workers(self) -> list[psutil.Process]:
        """The processes below the one that was started."""
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def sentinel(self) -> int:
        """The process that watches the workers; 0 if there is none."""
        found = (guardian(home.parent) for home in self._temporary.glob("loopscope-*/*/sentinel"))
        return next(filter(None, found), 0)

    def count_from_here(self) -> None:
        """What is ``published`` from here on is only what is added to it."""
        assert eventually(self._publishes), "nobody serves figures"
        self._before = self.scraper.get("/metrics").text

    def published(self, name: str, **labels: str) -> float:
        now = self.scraper.get("/metrics").text
        return _sum(now, name, labels) - _sum(self._before, name, labels)

    def becomes(self, expected: float, name: str, **labels: str) -> bool:
        """Whether a figure gets to where it should."""

        def is_there() -> bool:
            try:
                return self.published(name, **labels) == expected
            except httpx.TransportError:
                return False

        return eventually(is_there)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Ask it to end, with a scraper still connected; its exit code."""
        self.client.close()
        self.process.send_signal(how)
        return self.process.wait(PATIENCE)

    def end(self) -> None:
        """Whatever state it is in: leave nothing of it running."""
        if self.process.poll() is None:
            left = self.workers
            try:
                self.stop()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            if not eventually(lambda: all(map(has_ended, left))):
                for worker in filter(psutil.Process.is_running, left):
                    worker.kill()
        self.client.close()
        self.scraper.close()
        if not eventually(lambda: not self.sentinel):
            os.kill(self.sentinel, signal.SIGKILL)
            raise AssertionError("the sentinel has outlived its workers")

    def _publishes(self) -> bool:
        try:
            return self.scraper.get("/metrics").is_success
        except httpx.TransportError:
            return False

    def _is_ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the service ended at once:\n{self.said}")
        try:
            return self.client.get("/ready").is_success
        except httpx.TransportError:
            return False
