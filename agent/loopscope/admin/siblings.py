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
from collections.abc import Callable, Collection, Iterable, Mapping
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

    ``hang`` says which of them, by their numbers, need not be asked: they are silent.
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
            silent = [worker for worker in self._hang() if worker in living.values()]
            asked = {path: worker for path, worker in living.items() if worker not in silent}
            told = _asked(self._group.directory, asked, target, patience or PATIENCE)
            told.silent += silent
            return told
        except Exception as error:  # no descriptors left for a loop
            self._faults.report("workers", error)
            return Told()


def _asked(directory: Path, living: Mapping[Path, str], target: str, patience: float) -> Told:
    if not living:
        return Told()
    # Not asyncio.run: the service's policy would choose the loop.
    with (
        reachable(directory) as folder,
        asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner,
    ):
        addresses = [f"{folder}/{path.with_suffix(SOCKET).name}" for path in living]
        answers = runner.run(_ask_all(addresses, target, patience))
    told = Told()
    for worker, answer in zip(living.values(), answers, strict=True):
        if answer is None:
            told.silent.append(worker)
        else:
            told.answers.append((worker, answer))
    return told


async def _ask_all(addresses: Iterable[str], target: str, patience: float) -> list[Document | None]:
    line = asyncio.Semaphore(_AT_ONCE)

    async def ask(address: str) -> Document | None:
        async with line:
            try:
                async with asyncio.timeout(patience):
                    return _parsed(await _ask(address, target))
            except (OSError, ValueError):  # of which TimeoutError is one
                return None

    return await asyncio.gather(*map(ask, addresses))


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
