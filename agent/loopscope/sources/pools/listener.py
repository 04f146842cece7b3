"""The accept queues of the server's listening sockets.

A connection waits there from when the kernel has made it until the server accepts it. So what waits
is both in use, as a place in the queue that no other connection can have, and pending: the client
is connected and nobody has looked at it yet. A queue that is there at two readings in a row means
that the loop is blocked, or that there is too little CPU; a full one turns clients away unheard.

Who serves does not matter, so neither does which server it is: the sockets are found among the
process' descriptors. The agent may start before the server listens, and servers may come and go,
so they are looked for now and then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from loopscope.sources.pools import accept_queue
from loopscope.sources.pools.accept_queue import Listening
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.meter import Level

KIND: Final = "listener"

MOST: Final = 20
"""Addresses ever watched: a service that listens at a new port for each client is no server."""

_SOON: Final = 2.0
_LATER: Final = 30.0
"""Seconds from one search to the next, while there is none and once there are some: looking at
every descriptor takes about a microsecond each."""


class Listeners:
    """Watches all sockets of this process that listen, but for ``ours``, by their descriptors."""

    def __init__(self, book: PoolBook, ours: Callable[[], Iterable[int]]) -> None:
        self._book = book
        self._ours = ours
        self._known: set[Listening] = set()
        self._addresses: set[str] = set()
        self._next = 0.0

    def look(self) -> None:
        """Search, if it is time again."""
        now = self._book.now()
        if now < self._next:
            return
        ours = set(map(_inode, self._ours()))
        for found in accept_queue.listening():
            if found.inode not in ours and not self._knows(found):
                self._watch(found)
        self._next = now + (_LATER if self._known else _SOON)

    def _knows(self, found: Listening) -> bool:
        return any(known.inode == found.inode and known.is_there for known in self._known)

    def _watch(self, found: Listening) -> None:
        if accept_queue.queue(found) is None:
            return
        address = accept_queue.address(found.fd)
        self._addresses.add(address)
        if len(self._addresses) <= MOST:
            self._known.add(found)
            self._book.watch(address, KIND, partial(self._read, found))

    def _read(self, listening: Listening) -> Level | None:
        """The queue; None once the socket is closed, or at least no longer known by that number."""
        there = listening.is_there
        queue = accept_queue.queue(listening) if there else None
        if queue is not None:
            return Level(queue.backlog, in_use=queue.length, pending=queue.length)
        if there and accept_queue.listens(listening.fd):  # no descriptor left to ask with
            return Level(None)
        self._known.discard(listening)
        self._next = 0.0
        return None


def _inode(fd: int) -> int | None:
    try:
        return os.fstat(fd).st_ino
    except OSError:
        return None
