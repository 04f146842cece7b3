"""News of placed orders, handed to every open event stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

# A listener that falls this far behind misses news rather than make the shop keep it for them.
_BACKLOG = 100


@dataclass(frozen=True)
class Placed:
    """An order as the stream announces it; the amount is in cents."""

    number: int
    total_cents: int


class Feed:
    """Passes each announcement to all listeners of the moment; keeps nothing for later ones."""

    def __init__(self) -> None:
        self._listeners: set[asyncio.Queue[Placed]] = set()

    def announce(self, order: Placed) -> None:
        """Tell everyone; a listener whose backlog is full misses this one."""
        for queue in self._listeners:
            if not queue.full():
                queue.put_nowait(order)

    @contextmanager
    def listen(self) -> Iterator[asyncio.Queue[Placed]]:
        """Announcements from now until the block ends."""
        queue: asyncio.Queue[Placed] = asyncio.Queue(_BACKLOG)
        self._listeners.add(queue)
        try:
            yield queue
        finally:
            self._listeners.discard(queue)
