"""A load generator that knows of every single request whether it was answered.

The one of the demo (and wrk) will not do: behind a client's pool, a request that was cut may have
been sent again or never at all, and here each has to be accounted for.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from _exact_kinds import answer_bytes, kind_of, wire

_PATIENCE = 30.0
"""Seconds without an answer after which a request counts as cut."""


@dataclass
class Tally:
    """Numbers of requests, by what became of them."""

    answered: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)
    """Sent, maybe in part, and the connection ended before there was an answer."""
    left: set[int] = field(default_factory=set)
    """Sent, and the client has left on purpose."""
    wrong: dict[int, str] = field(default_factory=dict)
    """Answered as they should not have been."""

    @property
    def made(self) -> int:
        """How many there were."""
        return len(self.answered) + len(self.cut) + len(self.left) + len(self.wrong)


class Load:
    """Customers that make requests 1 to `requests`, each one when it has its last answer."""

    def __init__(self, port: int, requests: int, *, keeping: int, renewing: int) -> None:
        self.tally = Tally()
        self._port = port
        self._numbers = iter(range(1, requests + 1))
        self._keeps = [True] * keeping + [False] * renewing
        self._may_send = asyncio.Event()
        self._may_send.set()
        self._under_way = 0

    async def run(self) -> None:
        """Make all requests."""
        async with asyncio.TaskGroup() as customers:
            for keep in self._keeps:
                customers.create_task(self._customer(self._numbers, keep=keep))

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """No customer waits for an answer, or sends anything, inside."""
        self._may_send.clear()
        while self._under_way:
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            self._may_send.set()

    async def _customer(self, numbers: Iterator[int], *, keep: bool) -> None:
        connection = _Connection(self._port)
        try:
            while True:
                await self._may_send.wait()
                number = next(numbers, None)
                if number is None:
                    return
                self._under_way += 1
                await self._make(number, connection, keep=keep)
                self._under_way -= 1
        finally:
            connection.close()

    async def _make(self, number: int, connection: _Connection, *, keep: bool) -> None:
        if kind_of(number).leaves:
            self._leave(number)
            return
        if not keep:
            connection = _Connection(self._port)
        try:
            async with asyncio.timeout(_PATIENCE):
                await connection.send(wire(number, keep=keep))
                answer = await connection.answer()
        except (OSError, EOFError):
            self.tally.cut.add(number)
            connection.close()
            return
        if not keep:
            connection.close()
        if answer == (kind_of(number).status, answer_bytes(number)):
            self.tally.answered.add(number)
        else:
            self.tally.wrong[number] = f"{kind_of(number).route}: {answer}"

    def _leave(self, number: int) -> None:
        """Ask and leave at once, not when this loop gets to it: the answer must not be earlier."""
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            connection.sendall(wire(number, keep=False))
        self.tally.left.add(number)


class _Connection:
    """One connection, opened when there is something to send and none is open."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def send(self, request: bytes) -> None:
        """Raises `OSError`."""
        if self._streams is not None and self._streams[0].at_eof():
            self.close()  # the server has closed it while nobody asked for anything
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        self._streams[1].write(request)
        await self._streams[1].drain()

    async def answer(self) -> tuple[int, int]:
        """Status and bytes of the answer's body; raises `OSError` or `EOFError`."""
        assert self._streams is not None
        reader, _ = self._streams
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        first, *lines = head.strip().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        if "content-length" in headers:
            size = len(await reader.readexactly(int(headers["content-length"])))
        else:
            size = await _chunks(reader)
        if headers.get("connection") == "close":
            self.close()
        return int(first.split()[1]), size

    def close(self) -> None:
        """Close it, if it is open."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _chunks(reader: asyncio.StreamReader) -> int:
    """Bytes of a body in chunks; raises `EOFError` where it breaks off."""
    size = 0
    while length := int(await reader.readuntil(b"\r\n"), 16):
        size += length
        await reader.readexactly(length + 2)
    await reader.readexactly(2)
    return size
