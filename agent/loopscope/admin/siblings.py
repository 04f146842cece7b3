"""Asking the other workers of a group for what is in no page, all at once.

Each has a socket beside its page (``hatch``). One that is frozen, dying or not yet there must not
cost the answer: it gets a fraction of a second, and is then named as silent.

No pool of threads, which would have to be bounded and then let a few frozen workers keep the others
from being asked in time: one event loop, in the thread that asks and for as long as it asks, has
them all on the line, each with a deadline that covers the whole of its answer.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

from loopscope.admin.hatch import reachable
from loopscope.core.faults import Faults
from loopscope.core.group import SOCKET, Group

PATIENCE = 0.3
"""Seconds a worker has for its answer, as a rule."""
PATIENCE_FOR_METRICS = 1.0
"""The same where a figure that is missing would be a gap in somebody's graph."""
_GLANCE = 0.05
"""Seconds between two looks at whether a worker hangs that has been asked."""
_AT_ONCE = 256
"""Workers asked at a time: each takes a descriptor."""
_MOST_BYTES = 32 * 1024 * 1024
_CHUNK = 256 * 1024

Document = dict[str, Any]
T = TypeVar("T")


@dataclass(slots=True)
class Told:
    """What workers have said, each by its number; and the numbers of those who said nothing."""

    answers: list[tuple[str, Document]] = field(default_factory=list[tuple[str, Document]])
    silent: list[str] = field(default_factory=list[str])

    def read(self, understand: Callable[[Document], T]) -> list[T]:
        """Every answer as ``understand`` reads it; whoever speaks another version is silent."""
        read: list[T] = []
        for worker, answer in self.answers:
            try:
                read.append(understand(answer))
            except (LookupError, TypeError, ValueError):
                self.silent.append(worker)
        return read


class Siblings:
    """The other workers of ``group``. One thread, and none that runs an event loop.

    ``hang`` says which of them, by their numbers, need not be waited for: they are silent.
    """

    def __init__(
        self, group: Group, faults: Faults, hang: Callable[[], Collection[str]] = tuple
    ) -> None:
        self._group = group
        self._faults = faults
        self._hang = hang

    def ask(self, part: str, parameters: Mapping[str, str], patience: float | None = None) -> Told:
        """What all of them say of ``part``, see ``loopscope.admin.own``. Never raises.

        Each has so many seconds for its answer, ``PATIENCE`` unless given.
        """
        query = f"?{urlencode(parameters)}" if parameters else ""
        target = f"/own/{quote(part)}{query}"
        try:
            living = self._group.living()
            return self._asked(living, target, patience or PATIENCE) if living else Told()
        except Exception as error:  # no descriptors left for a loop
            self._faults.report("workers", error)
            return Told()

    def _asked(self, living: Mapping[Path, str], target: str, patience: float) -> Told:
        # Not asyncio.run: the service's policy would choose the loop.
        with (
            reachable(self._group.directory) as folder,
            asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
        ):
            workers = [
                (worker, f"{folder}/{path.with_suffix(SOCKET).name}")
                for path, worker in living.items()
            ]
            answers = runner.run(self._ask_all(workers, target, patience))
        told = Told()
        for worker, answer in zip(living.values(), answers, strict=True):
            if answer is None:
                told.silent.append(worker)
            else:
                told.answers.append((worker, answer))
        return told

    async def _ask_all(
        self, workers: Iterable[tuple[str, str]], target: str, patience: float
    ) -> list[Document | None]:
        line = asyncio.Semaphore(_AT_ONCE)

        async def ask(worker: str, address: str) -> Document | None:
            async with line:
                try:
                    async with asyncio.timeout(patience), self._giving_up_on(worker):
                        return _parsed(await _ask(address, target))
                except (OSError, ValueError):  # of which TimeoutError is one
                    return None

        return await asyncio.gather(*(ask(worker, address) for worker, address in workers))

    @asynccontextmanager
    async def _giving_up_on(self, worker: str) -> AsyncGenerator[None]:
        """End what is inside as if time were up, should ``worker`` hang, or begin to."""
        async with asyncio.timeout(None) as asking:

            async def watch() -> None:
                while worker not in self._hang():  # noqa: ASYNC110 - another thread finds out
                    await asyncio.sleep(_GLANCE)
                asking.reschedule(asyncio.get_running_loop().time())

            watching = asyncio.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()


async def _ask(address: str, target: str) -> bytes:
    """The response as it comes over the wire. Raises ``OSError``, or ``ValueError`` if too long."""
    reader, writer = await asyncio.open_unix_connection(address)
    try:
        headers = "host: loopscope\r\nconnection: close\r\n\r\n"
        writer.write(f"GET {target} HTTP/1.1\r\n{headers}".encode())
        said = bytearray()
        while piece := await reader.read(_CHUNK):
            said += piece
            if len(said) > _MOST_BYTES:
                raise ValueError(f"more than {_MOST_BYTES} bytes")
        return bytes(said)
    finally:
        writer.transport.abort()


def _parsed(response: bytes) -> Document:
    """The document in a response as ``hatch`` makes them: whole, not chunked.

    Raises ``ValueError`` for anything else.
    """
    head, _, body = response.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"answered {head[:40]!r}")
    document: Document = json.loads(body)
    return document
