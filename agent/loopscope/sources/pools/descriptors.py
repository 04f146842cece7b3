"""File descriptors: without a free one the server accepts nobody, and no pool can grow.

A server that has run out leaves its clients in the accept queue and logs "out of system resource"
several times a second; whatever is open already goes on.
"""

from __future__ import annotations

import errno
from typing import Final

import psutil

from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.meter import Level
from loopscope.sources.process import max_fds, open_fds_at_once

KIND: Final = "fd"
NAME: Final = "file descriptors"

_PAUSE: Final = 5.0
"""Seconds between two counts where they have to be listed to be counted: 0.3 µs each."""
_UNLIMITED: Final = 2.0**63


class Descriptors:
    """Watches this process' open file descriptors against their soft limit."""

    def __init__(self, book: PoolBook) -> None:
        self._now = book.now
        self._watch = book.watch
        self._is_watched = False
        self._listed = 0.0
        self._next = 0.0

    def look(self) -> None:
        """Begin, unless that is done. Raises where they cannot be counted (no /proc)."""
        if not self._is_watched:
            self._is_watched = True
            self._count()
            self._watch(NAME, KIND, self._read)

    def _read(self) -> Level:
        limit = max_fds()
        return Level(None if limit > _UNLIMITED else limit, in_use=self._count())

    def _count(self) -> float:
        count = open_fds_at_once()
        return self._list() if count is None else count

    def _list(self) -> float:
        now = self._now()
        if now >= self._next:
            self._next = now + _PAUSE
            try:
                self._listed = psutil.Process().num_fds()
            except OSError as error:
                if error.errno != errno.EMFILE:
                    raise
                self._listed = max_fds()  # not even one is left to list the others with
        return self._listed
