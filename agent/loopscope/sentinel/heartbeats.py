"""Heartbeats of all loops of all workers, read from their pages.

A page says when a loop's next beat is due. To read that takes a system call of a microsecond, and
nothing of the worker: so it is done many times a second. Pages are read in full only when something
was added to them, and then no more than once a second.

What is there is anybody's word, that of a worker gone mad included: it is taken for what it can be,
and nothing is mapped, for a map of a file that is cut short is deadly.

Moments are on the system's monotonic clock, which all processes share (``core.clock``).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

import psutil

from loopscope.core.claim import Claim
from loopscope.core.claim import judged as claim
from loopscope.core.group import Group
from loopscope.core.page import (
    HEADER_BYTES,
    PageError,
    PageReader,
    Series,
    read_header,
    read_open,
)
from loopscope.sources.endpoints import ENDPOINT
from loopscope.sources.loop import BEAT_DUE, THREAD

_AFRESH = 1.0
"""Seconds between two full readings of a page that grows."""
_SLOT = struct.Struct("=d")
_MOST_THREAD = 2**31 - 1
_MOST_DIGITS = 9
"""Of a line's number."""

Endpoints = dict[tuple[str, str], list[tuple[int, str]]]
"""By file and function: first line and route of each function there that goes by this name."""


@dataclass(slots=True, eq=False)
class Heart:
    """One worker, by its page."""

    pid: int
    """As the page says: see ``claim``."""
    path: Path
    file: int
    since: float
    """When the page was made."""
    claim: Claim = Claim.FALSE
    """Whether it is true that the page is that process'."""
    process: psutil.Process | None = None
    """The process of that number when this was found out."""
    reader: PageReader = field(default_factory=PageReader)
    due_slots: dict[str, int] = field(default_factory=dict[str, int])
    thread_slots: dict[str, int] = field(default_factory=dict[str, int])
    endpoints: Endpoints = field(default_factory=Endpoints)
    parsed: int = 0
    """Series known so far."""
    used: int = 0
    read_at: float = float("-inf")

    def identify(self) -> Claim:
        """Find out whose page it is, as long as that is not certain, or not any more."""
        if self.claim is Claim.TRUE and self.process is not None and self.process.is_running():
            return self.claim
        self.claim, self.process = Claim.FALSE, None
        with suppress(psutil.Error, ValueError, OverflowError):
            process = psutil.Process(self.pid)  # first: so it is this one that is asked about
            self.claim, self.process = claim(self.pid, self.file), process
        return self.claim

    def due(self, loop: str) -> float:
        """When the next beat of ``loop`` is due; 0.0 if none is. Raises ``OSError``."""
        due = self._value(self.due_slots[loop])
        return due if due >= self.since else 0.0

    def thread(self, loop: str) -> int:
        """The native id of the thread that runs ``loop``, or 0. Raises ``OSError``."""
        native_id = self._value(self.thread_slots[loop])
        return int(native_id) if 0 < native_id <= _MOST_THREAD else 0

    def _value(self, slot: int) -> float:
        """What is in a slot; 0.0 where there is none, or no number in it."""
        raw = os.pread(self.file, 8, 8 * slot)
        value: float = _SLOT.unpack(raw)[0] if len(raw) == _SLOT.size else 0.0
        return value if isfinite(value) else 0.0

    def read(self, now: float) -> None:
        """Learn of loops and endpoints that are new. Raises ``OSError`` or ``PageError``."""
        if now - self.read_at < _AFRESH:
            return
        self.read_at = now
        header = read_header(os.pread(self.file, HEADER_BYTES, 0), os.fstat(self.file).st_size)
        if header.used == self.used:
            return
        self.used = header.used  # what cannot be read is not read again until there is more
        try:
            self.reader.update(read_open(self.file, self.path))
        finally:
            for series in self.reader.series[self.parsed :]:
                self._learn(series)
            self.parsed = len(self.reader.series)

    def _learn(self, series: Series) -> None:
        match series.metric.name, series.labels:
            case BEAT_DUE.name, (loop,):
                self.due_slots[loop] = series.runs[0][0]
            case THREAD.name, (loop,):
                self.thread_slots[loop] = series.runs[0][0]
            case ENDPOINT.name, (file, function, line, route):
                if line.isdecimal() and len(line) <= _MOST_DIGITS:
                    self.endpoints.setdefault((file, function), []).append((int(line), route))
            case _:
                pass

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
            with suppress(OSError, PageError):
                heart.read(now)
        return gone

    def _begin(self, path: Path) -> None:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            header = read_header(os.pread(file, HEADER_BYTES, 0), os.fstat(file).st_size)
        except BaseException:
            os.close(file)
            raise
        heart = self.hearts[path] = Heart(header.pid, path, file, header.created)
        heart.identify()

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
