"""A process we started: its last words kept, ended by closing its standard input."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

_ROOT = Path(__file__).resolve().parent.parent
_LINES_KEPT = 30
_LONGEST_LINE = 1 << 20
_STOP_S = 15.0


class ChildFailedError(Exception):
    """A process of the demo ended, or did not become ready; says which, and what it said last."""


class Child:
    """One running Python module. Use ``running`` to make and end it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._said = asyncio.Condition()
        self._silent = False
        self._reading = asyncio.create_task(self._read())

    @property
    def ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.returncode is not None

    async def wait(self) -> None:
        """Return when the process is gone."""
        await self._process.wait()

    def failure(self, what: str) -> ChildFailedError:
        """The error to raise about this process, with its last output."""
        said = "\n".join(f"    {line}" for line in self._lines) or "    (it printed nothing)"
        return ChildFailedError(f"{self.name}: {what}. Its last output:\n{said}")

    async def hear(self, prefix: str, within_s: float) -> str:
        """The rest of the first line with this prefix; ``ChildFailedError`` if none comes."""
        try:
            async with asyncio.timeout(within_s), self._said:
                await self._said.wait_for(lambda: self._find(prefix) or self._silent)
        except TimeoutError:
            raise self.failure(f"not ready within {within_s:.0f} s") from None
        line = self._find(prefix)
        if line is None:
            raise self.failure("ended while starting")
        return line.removeprefix(prefix)

    async def stop(self) -> None:
        """Ask the process to end, and kill it if it does not within some seconds."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOP_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        await self._reading

    def _find(self, prefix: str) -> str | None:
        return next((line for line in self._lines if line.startswith(prefix)), None)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            await self._note(line.decode(errors="replace").rstrip())
        await self._note(None)

    async def _note(self, line: str | None) -> None:
        async with self._said:
            if line is None:
                self._silent = True
            else:
                self._lines.append(line)
            self._said.notify_all()


@asynccontextmanager
async def running(
    name: str,
    module: str,
    *arguments: str,
    environment: Mapping[str, str] | None = None,
    descriptors: Sequence[int] = (),
) -> AsyncIterator[Child]:
    """Run ``python -m module arguments`` for the length of the block.

    It gets a session of its own: Ctrl-C reaches only us, and we end the processes in order.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        module,
        *arguments,
        cwd=_ROOT,
        env={**os.environ, **(environment or {})},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        pass_fds=descriptors,
        start_new_session=True,
        limit=_LONGEST_LINE,
    )
    child = Child(name, process)
    try:
        yield child
    finally:
        await child.stop()
