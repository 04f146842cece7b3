"""Heartbeats of all loops of all workers, read from their pages.

A page says when a loop's next beat is due. To read that takes a system call of a microsecond, and
nothing of the worker: so it is done many times a second. Pages are read in full only when something
was added to them, and then no more than once a second.

Moments are on the system's monotonic clock, which all processes share (``core.clock``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from loopscope.core.group import Group
from loopscope.core.page import HEADER_BYTES, PageError, PageReader, read_header, read_open
from loopscope.sources.endpoints import ENDPOINT
from loopscope.sources.loop import BEAT_DUE, THREAD

_AFRESH = 1.0
"""Seconds between two full readings of a page that grows."""
_SLOT = struct.Struct("=d")

Endpoints = dict[tuple[str, str], list[tuple[int, str]]]
"""By file and function: first line and route of each function there that goes by this name."""


@dataclass(slots=True, eq=False)
class Heart:
    """One worker, by its page."""

    pid: int
    path: Path
    file: int
    reader: PageReader = field(default_factory=PageReader)
    due_slots: dict[str, int] = field(default_factory=dict[str, int])
    thread_slots: dict[str, int] = field(default_factory=dict[str, int])
    endpoints: Endpoints = field(default_factory=Endpoints)
    parsed: int = 0
    """Series known so far."""
    used: int = 0
    read_at: float = float("-inf")

    def due(self, loop: str) -> float:
        """When the next beat of ``loop`` is due; 0.0 if none is. Raises ``OSError``."""
        return self._value(self.due_slots[loop])

    def thread(self, loop: str) -> int:
        """The native id of the thread that runs ``loop``. Raises ``OSError``."""
        return int(self._value(self.thread_slots[loop]))

    def _value(self, slot: int) -> float:
        raw = os.pread(self.file, 8, 8 * slot)
        return _SLOT.unpack(raw)[0] if len(raw) == _SLOT.size else 0.0

    def read(self, now: float) -> None:
        """Learn of loops and endpoints that are new. Raises ``OSError`` or ``PageError``."""
        if now - self.read_at < _AFRESH:
            return
        self.read_at = now
        header = read_header(os.pread(self.file, HEADER_BYTES, 0), os.fstat(self.file).st_size)
        if header.used == self.used:
            return
        self.reader.update(read_open(self.file, self.path))
        self.used = header.used
        for series in self.reader.series[self.parsed :]:
            if series.metric.name == BEAT_DUE.name:
                self.due_slots[series.labels[0]] = series.runs[0][0]
            elif series.metric.name == THREAD.name:
                self.thread_slots[series.labels[0]] = series.runs[0][0]
            elif series.metric.name == ENDPOINT.name:
                file, function, line, route = series.labels
                self.endpoints.setdefault((file, function), []).append((int(line), route))
        self.parsed = len(self.reader.series)

    def route_of(self, file: str, function: str, line: int) -> str:
        """The route that code serves; "" where it serves none, or several."""
        known = self.endpoints.get((file, function), ())
        before = [(first, route) for first, route in known if first <= line]
        nearest = max((first for first, _ in before), default=0)
        routes = {route for first, route in before if first == nearest}
        return routes.pop() if len(routes) == 1 else ""


class Heartbeats:
    """The hearts of a group's workers. For one thread, as ``group`` is."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self.hearts: dict[Path, Heart] = {}

    def look_around(self, now: float) -> list[Heart]:
        """Find the workers that are alive; those that have ended since the last look."""
        living = set(self._group.living())
        gone = [self.hearts.pop(path) for path in self.hearts.keys() - living]
        for heart in gone:
            os.close(heart.file)
        for path in living - self.hearts.keys():
            with suppress(OSError, PageError):
                self._begin(path)
        for heart in self.hearts.values():
            with suppress(OSError, PageError, ValueError):
                heart.read(now)
        return gone

    def _begin(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            header = read_header(os.pread(file, HEADER_BYTES, 0), os.fstat(file).st_size)
        except BaseException:
            os.close(file)
            raise
        self.hearts[path] = Heart(header.pid, path, file)

    def overdue(self, now: float, patience: float) -> Iterator[tuple[Heart, str, float]]:
        """Loops that should have beaten ``patience`` seconds ago or earlier, with when."""
        for heart in self.hearts.values():
            for loop in heart.due_slots.keys() & heart.thread_slots.keys():
                with suppress(OSError):
                    due = heart.due(loop)
                    if due and now - due >= patience:
                        yield heart, loop, due

    def close(self) -> None:
        """Close all files."""
        for heart in self.hearts.values():
            os.close(heart.file)
        self.hearts.clear()
