"""A worker process and its parent, talking in JSON lines over the worker's stdin and stdout.

The worker reads commands on its own event loop, so the loop keeps running between commands, as a
server's does: an agent that watches the loop sees an idle one, not a stalled one.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

Message = dict[str, Any]
"""One JSON object: a command to a worker, or its reply."""

HERE = Path(__file__).resolve().parent

_FOREIGN_SETTINGS = ("LOOPSCOPE_", "OTEL_", "PROMETHEUS_")


class WorkerError(Exception):
    """The worker ended, or answered a command with an error."""


class Worker:
    """A child process that runs one of this directory's scripts and answers commands.

    `script` is a file name here; `env` is added to a copy of the environment from which every
    setting of the measured libraries has been taken out, so that all run on their defaults.
    """

    def __init__(self, script: str, *args: str, env: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**clean_environment(), **(env or {})},
            text=True,
            bufsize=1,
        )
        self._overdue = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, **command: Any) -> Message:
        """Send one command and wait for its reply; raises `WorkerError`."""
        self.tell(**command)
        return self.hear()

    def tell(self, **command: Any) -> None:
        """Send one command without waiting; raises `WorkerError` when nobody is there to read."""
        try:
            _pipe(self._process.stdin).write(json.dumps(command) + "\n")
        except BrokenPipeError:
            raise WorkerError(self._end()) from None

    @contextmanager
    def within(self, seconds: float, what: str) -> Iterator[None]:
        """Kill the worker if the block takes longer; who waits for it then gets a `WorkerError`."""

        def give_up() -> None:
            self._overdue = f"it was killed: {what} took more than {seconds:.0f} s"
            self._process.kill()

        timer = threading.Timer(seconds, give_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def hear(self) -> Message:
        """Wait for the next reply; raises `WorkerError` when it is an error or never comes."""
        line = _pipe(self._process.stdout).readline()
        if not line:
            raise WorkerError(self._end())
        reply: Message = json.loads(line)
        if "error" in reply:
            raise WorkerError(str(reply["error"]))
        return reply

    def close(self) -> None:
        """End the worker: closing its input is the signal, killing it the last resort."""
        with suppress(BrokenPipeError):
            _pipe(self._process.stdin).close()
        try:
            self._process.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _pipe(self._process.stdout).close()

    def _end(self) -> str:
        """Why the worker is no more; waits for it to be so."""
        code = self._process.wait()
        return self._overdue or f"the worker ended with code {code}, see above"


def clean_environment() -> dict[str, str]:
    """The environment without the measured libraries' settings, hashes the same in each process."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(_FOREIGN_SETTINGS)}
    return {**kept, "PYTHONHASHSEED": "0"}


def claim_stdout() -> IO[str]:
    """Keep stdout for replies; whatever libraries print goes to stderr instead."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return replies


def send(replies: IO[str], reply: Message) -> None:
    """Write one reply."""
    replies.write(json.dumps(reply) + "\n")


async def answer(replies: IO[str], handle: Callable[[Message], Awaitable[Message]]) -> None:
    """Answer commands from stdin with `handle` until the parent closes the pipe."""
    loop = asyncio.get_running_loop()
    commands = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(commands), sys.stdin
    )
    try:
        while line := await commands.readline():
            send(replies, await handle(json.loads(line)))
    finally:
        transport.close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    if stream is None:
        raise WorkerError("the worker was started without a pipe")
    return stream
