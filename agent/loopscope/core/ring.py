"""A bounded ring: the newest items are kept, the number that fell out is known.

``append`` is safe from any thread, a signal handler or a garbage collector callback: it takes no
lock (``collections.deque`` appends atomically). Draining is for one reader at a time.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Ring(Generic[T]):
    """Holds at most ``capacity`` items between two drains; older ones make way and are counted."""

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"a ring holds at least one item, not {capacity}")
        self._items: deque[T] = deque(maxlen=capacity)
        self._appended = 0
        self._taken = 0

    def __len__(self) -> int:
        return len(self._items)

    @property
    def dropped(self) -> int:
        """How many items made way unread so far.

        Exact while nobody is appending; an append under way may be counted a moment late.
        """
        return max(0, self._appended - self._taken - len(self._items))

    def append(self, item: T) -> None:
        self._appended += 1
        self._items.append(item)

    def latest(self) -> list[T]:
        """The items held now, oldest first, left where they are."""
        return list(self._items)

    def drain(self) -> list[T]:
        """Take out everything held now, oldest first."""
        taken: list[T] = []
        for _ in range(len(self._items)):
            try:
                taken.append(self._items.popleft())
            except IndexError:  # another drain got there first
                break
        self._taken += len(taken)
        return taken
