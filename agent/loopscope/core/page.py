"""The page: every number a worker records, as float64 slots in a memory map.

A page is a header followed by an append-only log of records. A record is a key and the slots that
belong to it, side by side::

    | key length, u32 | slot count, u32 | key, JSON, padded to 8 | slots, float64 ... |

Four kinds of keys:

* an object declares a metric (no slots; its number is the order of declaration);
* ``[metric number, label value, ...]`` is a series, whose slots are the record's;
* ``null`` is a block of slots that no series owns;
* ``[[slot, count, ...], metric number, label value, ...]`` is a series laid over slots of earlier
  records (no slots of its own): so what is written together can lie together, in one or two lines
  of the processor's cache, and two series can count the same events in the same slots.

So a page explains itself: a reader needs neither the writer's code nor its catalogue.

Rules that make it safe without locks on the hot path and across processes:

* one writer per slot; a slot is eight aligned bytes, which a reader sees whole;
* a record is written first and made visible afterwards, by moving ``used`` past it;
* the map has its full size from the start, so handles into it never go stale. A file is sparse, and
  blocks are reserved ahead of use (``posix_fallocate``): touching a hole on a full disk would kill
  the process with SIGBUS, a failed reservation is only a ``PageFullError``;
* a file outlives its process: the kernel keeps what was written to a shared map even through
  SIGKILL.

prometheus_client's multiprocess files are the ancestor. Different here: one file for all metrics,
slots a writer can keep handles to, declarations inside, and readers that refuse what they do not
know.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from json import dumps, loads  # by name: a service's tests may patch json.dumps and count calls
from pathlib import Path
from reprlib import repr as brief  # a broken key may be deep and long
from sys import intern
from typing import Any, cast

from loopscope.core.clock import Clock
from loopscope.core.metric import Kind, Metric

MAGIC = b"LOOPSCP\0"
FORMAT = 1
SUFFIX = ".page"
UNBORN = ".new"
"""What the file of a page ends in before it is one."""

_HEADER = struct.Struct("=8sIIQdddd QQQ")
"""magic, format, header bytes, pid, process start, created (wall), created (monotonic), heartbeat
(monotonic), used bytes, reserved bytes, state."""
HEADER_BYTES = 256
_HEARTBEAT = 48 // 8
_USED = 56 // 8
_RESERVED = 64 // 8
_STATE = 72 // 8
_OPEN, _CLOSED = 0, 1

_RECORD = struct.Struct("=II")
DEFAULT_CAPACITY = 32 * 1024 * 1024
_GROWTH = 256 * 1024
LARGEST = 1 << 28
"""No honest page is larger than this many bytes; a reader refuses to try."""

_DECLARED = tuple(field.name for field in fields(Metric))
"""What a page says of a metric. Not ``asdict``, which copies all of it to the bottom."""

Labels = tuple[str, ...]


class PageFullError(Exception):
    """No room for another series: the page's capacity or the disk below it is used up."""


class PageError(Exception):
    """A page that cannot be read; ``reason`` is one of ``REASONS``."""

    REASONS = ("unreadable", "truncated", "foreign", "version", "corrupt")

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Header:
    """What a page says of itself. Times: ``*_wall`` Unix seconds, the others ``perf_counter``."""

    pid: int
    process_started_wall: float
    created_wall: float
    created: float
    heartbeat: float
    used: int
    closed: bool


Run = tuple[int, int]
"""Slots side by side: the first one's index, and how many there are."""


@dataclass(frozen=True, slots=True)
class Series:
    """One series found in a page: its metric, its label values, and where its slots are.

    A histogram's or a gauge's runs add up to ``metric.slot_count`` slots; a counter may have more,
    whose sum it is.
    """

    metric: Metric
    labels: Labels
    runs: tuple[Run, ...]

    def raw(self, buffer: bytes | memoryview) -> bytes:
        """The series' slots, copied from a page's bytes."""
        (first, count), *more = self.runs
        raw = bytes(buffer[8 * first : 8 * (first + count)])
        if more:  # two runs at most are common: cheaper than joining
            for first, count in more:
                raw += buffer[8 * first : 8 * (first + count)]
        return raw


class Page:
    """The writing side. ``slots`` is the whole map as float64; ``allocate`` hands out indices."""

    def __init__(
        self, memory: mmap.mmap, clock: Clock, started_wall: float, fd: int | None
    ) -> None:
        self._memory = memory
        self._fd = fd
        self._lock = threading.Lock()  # allocation only: the hot path never comes here
        self._metrics: dict[Metric, int] = {}
        self.series_count = 0
        """Series allocated so far."""
        self.path: Path | None = None
        self.view = memoryview(memory)
        self.slots: memoryview[float] = self.view.cast("d")
        self._words: memoryview[int] = self.view.cast("Q")
        now = clock.now()
        _HEADER.pack_into(
            memory, 0, MAGIC, FORMAT, HEADER_BYTES, os.getpid(), started_wall,
            clock.wall(now), now, now, HEADER_BYTES, len(memory), _OPEN,
        )  # fmt: skip

    @classmethod
    def anonymous(
        cls, clock: Clock, *, started_wall: float = 0.0, capacity: int = DEFAULT_CAPACITY
    ) -> Page:
        """A page in this process' own memory: nothing on disk, gone with the process."""
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # private: a fork must not write into ours
        return cls(mmap.mmap(-1, capacity, flags=flags), clock, started_wall, None)

    @classmethod
    def in_directory(
        cls,
        directory: Path,
        clock: Clock,
        *,
        started_wall: float = 0.0,
        capacity: int = DEFAULT_CAPACITY,
    ) -> Page:
        """A page in a file of ``directory`` that other processes can read, even after a crash.

        The directory is made if missing, for this user only. Raises ``OSError`` where it cannot be
        written or the disk is full.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{os.getpid()}-{time.time_ns()}{SUFFIX}"
        return cls.in_file(path, clock, started_wall=started_wall, capacity=capacity)

    @classmethod
    def in_file(
        cls,
        path: Path,
        clock: Clock,
        *,
        started_wall: float = 0.0,
        capacity: int = DEFAULT_CAPACITY,
    ) -> Page:
        """A page in the new file ``path``, which stays locked until it is closed or we end.

        Nobody sees the file before it is a page, and locked. Raises ``OSError`` where it exists,
        cannot be written or locked, or the disk is full.
        """
        unborn = path.with_name(f"{path.name}{UNBORN}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        mapped = os.open(unborn, flags, 0o600)
        fd = None
        try:
            # Opened once more for the lock: the map keeps a copy of what it was made from, which a
            # forked child inherits and cannot close, and with it would go on having the lock.
            fd = os.open(unborn, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, capacity)
            _reserve(fd, 0, min(_GROWTH, capacity))
            page = cls(mmap.mmap(mapped, capacity), clock, started_wall, fd)
            page._words[_RESERVED] = min(_GROWTH, capacity)
            unborn.rename(path)
        except BaseException:
            if fd is not None:
                os.close(fd)
            unborn.unlink(missing_ok=True)
            raise
        finally:
            os.close(mapped)
        page.path = path
        return page

    @property
    def used(self) -> int:
        """Bytes in use, header included."""
        return self._words[_USED]

    def beat(self, moment: float) -> None:
        """Say that the worker was alive at ``moment`` (monotonic seconds)."""
        self.slots[_HEARTBEAT] = moment

    def allocate(self, metric: Metric, labels: Sequence[str] = ()) -> int:
        """Add a series of zeros and return the index of its first slot in ``slots``.

        The same series may be added several times, once for each writer; readers add them up.
        Raises ``PageFullError``, and ``ValueError`` where labels do not fit the metric.
        """
        with self._lock:
            first_slot = self._append(self._key(metric, labels), metric.slot_count)
            self.series_count += 1
            return first_slot

    def allocate_block(self, slot_count: int) -> int:
        """Add ``slot_count`` zeros of no series and return the first one's index in ``slots``.

        Raises ``PageFullError``.
        """
        with self._lock:
            return self._append(None, slot_count)

    def lay(self, metric: Metric, labels: Sequence[str], *runs: Run) -> None:
        """Add a series whose slots are ``runs`` of slots allocated before.

        Raises ``PageFullError``, and ``ValueError`` where labels or the number of slots do not fit
        the metric.
        """
        if not _fits(metric, runs):
            raise ValueError(f"{metric.name} takes {metric.slot_count} slots, not {runs}")
        if not _exist(runs, self.used):
            raise ValueError(f"{metric.name}: slots {runs} are not allocated")
        with self._lock:
            flat = [part for run in runs for part in run]
            self._append([flat, *self._key(metric, labels)], 0)
            self.series_count += 1

    def _key(self, metric: Metric, labels: Sequence[str]) -> list[object]:
        """A series' key; declares the metric first if need be."""
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has labels {metric.labels}, not {len(labels)} values")
        if not all(isinstance(label, str) for label in cast("Sequence[object]", labels)):
            # Readers would refuse not just this series but the page.
            raise ValueError(f"{metric.name}: label values are text, unlike {labels!r}")
        number = self._metrics.get(metric)
        if number is None:
            self._append({name: getattr(metric, name) for name in _DECLARED}, 0)
            number = self._metrics[metric] = len(self._metrics)
        return [number, *labels]

    def _append(self, key: object, slot_count: int) -> int:
        raw = dumps(key, separators=(",", ":")).encode()
        padded = raw.ljust(-(-len(raw) // 8) * 8)
        start = self.used
        first_slot = start + _RECORD.size + len(padded)
        end = first_slot + 8 * slot_count
        self._grow_to(end)
        _RECORD.pack_into(self._memory, start, len(padded), slot_count)
        self._memory[start + _RECORD.size : first_slot] = padded
        self._words[_USED] = end
        return first_slot // 8

    def _grow_to(self, end: int) -> None:
        """Make sure that bytes up to ``end`` can be touched."""
        reserved = self._words[_RESERVED]
        if end <= reserved:
            return
        wanted = min(-(-end // _GROWTH) * _GROWTH, len(self._memory))
        if end > wanted or self._fd is None:
            raise PageFullError(f"a page of {len(self._memory)} bytes has no room for {end} bytes")
        try:
            _reserve(self._fd, reserved, wanted - reserved)
        except OSError as error:
            raise PageFullError(f"no space left for page {self.path}: {error}") from error
        self._words[_RESERVED] = wanted

    def abandon(self) -> None:
        """In a forked child, where the file is the parent's: change nothing in it any more.

        There is no room in an abandoned page. Handles into it still lead to the parent's slots, so
        whoever has some has to forget them.
        """
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._lock = threading.Lock()  # whoever held it does not exist here
        self._words = memoryview(bytearray(HEADER_BYTES)).cast("Q")
        self.path = None

    def close(self, *, remove: bool = False) -> None:
        """Mark the page as finished in good order; ``remove`` deletes its file as well.

        The map stays in place: a straggler that still holds a handle writes into memory nobody
        reads, instead of failing in the middle of somebody's request.
        """
        self._words[_STATE] = _CLOSED
        if self._fd is not None:
            with suppress(OSError):
                fcntl.flock(self._fd, fcntl.LOCK_UN)  # a child's copy of it would keep the lock
            os.close(self._fd)
            self._fd = None
        if remove and self.path is not None:
            self.path.unlink(missing_ok=True)


def _reserve(fd: int, offset: int, length: int) -> None:
    """Get real disk blocks, so that touching them cannot fail later."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, offset, length)
    else:  # macOS: writing zeros is the portable way to have blocks
        os.pwrite(fd, bytes(length), offset)


_seen: dict[Metric, Metric] = {}
"""Metrics as first read: what all pages declare alike is one object, and need not be compared."""
_MOST_SEEN = 1024


class PageReader:
    """The reading side of one page: remembers what it has parsed, so that a re-read is cheap.

    Give ``update`` the page's bytes (or the live map) each time; ``series`` then lists all series
    in order of appearance.
    """

    def __init__(self) -> None:
        self.series: list[Series] = []
        self._metrics: list[Metric] = []
        self._parsed = HEADER_BYTES

    def update(self, buffer: bytes | memoryview) -> Header:
        """Parse what has come since last time. Raises ``PageError`` on anything that is no page."""
        header = read_header(buffer)
        if header.used < self._parsed:
            raise PageError("corrupt", "a page never shrinks")
        for key, offset, slot_count in _records(buffer, self._parsed, header.used):
            self._take(key, offset, slot_count)
            self._parsed = offset + 8 * slot_count  # not twice, should the next record be corrupt
        return header

    def _take(self, key: object, offset: int, slot_count: int) -> None:
        if isinstance(key, dict):
            metric = _metric_from(cast("dict[str, Any]", key))
            if len(_seen) < _MOST_SEEN:
                metric = _seen.setdefault(metric, metric)
            self._metrics.append(metric)
            return
        if key is None:
            return
        runs, number, labels = _series_key(key)
        if not 0 <= number < len(self._metrics):
            raise PageError("corrupt", f"key {brief(key)} names an undeclared metric")
        metric = self._metrics[number]
        if runs is None:
            fits = slot_count == metric.slot_count
            runs = ((offset // 8, slot_count),)
        else:
            fits = slot_count == 0 and _fits(metric, runs) and _exist(runs, offset)
        if not fits or len(labels) != len(metric.labels):
            raise PageError("corrupt", f"series {brief(key)} does not fit {metric.name}")
        self.series.append(Series(metric, labels, runs))


def read_header(buffer: bytes | memoryview, size: int | None = None) -> Header:
    """The header of a page of ``size`` bytes (``buffer``'s length unless given), checked."""
    size = len(buffer) if size is None else size
    if len(buffer) < HEADER_BYTES:
        raise PageError("truncated", f"{len(buffer)} bytes are too few for a header")
    (magic, version, header_bytes, pid, started, wall, created, heartbeat, used, _, state) = (
        _HEADER.unpack_from(buffer)
    )
    if magic != MAGIC:
        raise PageError("foreign", "not a loopscope page")
    if version != FORMAT or header_bytes != HEADER_BYTES:
        raise PageError("version", f"format {version}, this reader knows {FORMAT}")
    if used < HEADER_BYTES or used % 8 or used > LARGEST:
        raise PageError("corrupt", f"used is {used}")
    if used > size:
        raise PageError("truncated", f"{used} bytes in use, {size} present")
    return Header(pid, started, wall, created, heartbeat, used, state == _CLOSED)


def read_file(path: Path) -> bytes:
    """The used part of a page file, copied: a map of it could die if the file were cut short.

    Raises ``PageError``; never follows a symbolic link and never reads what is no regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise PageError("unreadable", str(error)) from error
    try:
        return read_open(fd, path)
    finally:
        os.close(fd)


def read_open(fd: int, path: Path) -> bytes:
    """`read_file` of a file that is open, and stays so. Raises ``PageError``."""
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise PageError("foreign", f"{path} is no regular file")
        head = os.pread(fd, HEADER_BYTES, 0)
        used = read_header(head, status.st_size).used
        # The header as first read goes along: by now its writer may have moved `used` on.
        return head + os.pread(fd, used - HEADER_BYTES, HEADER_BYTES)
    except OSError as error:
        raise PageError("unreadable", str(error)) from error


def _records(buffer: bytes | memoryview, start: int, end: int) -> Iterator[tuple[Any, int, int]]:
    """Walk the log between two byte offsets: each record's key, slot offset and slot count."""
    position = start
    while position < end:
        if position + _RECORD.size > end:
            raise PageError("corrupt", "a record ends in mid-air")
        key_length, slot_count = _RECORD.unpack_from(buffer, position)
        key_start = position + _RECORD.size
        slots_start = key_start + key_length
        position = slots_start + 8 * slot_count
        if key_length % 8 or position > end:
            raise PageError("corrupt", f"a record of {key_length} + 8 x {slot_count} bytes")
        try:
            key = loads(bytes(buffer[key_start:slots_start]))
        except (ValueError, RecursionError) as error:
            raise PageError("corrupt", f"key at {key_start}: {error}") from error
        yield key, slots_start, slot_count


def _series_key(key: object) -> tuple[tuple[Run, ...] | None, int, Labels]:
    """Runs (None: the record's own slots), metric number and label values of a series' key."""
    number, *labels = _array(key) or [None]
    runs = None
    if isinstance(number, list):
        runs = _runs(cast("list[object]", number))
        number, *labels = labels or [None]
    if not _is_int(number):
        raise PageError("corrupt", f"key {brief(key)} is no series")
    return runs, number, tuple(map(intern, map(_text, labels)))  # other pages have them, too


def _runs(flat: list[Any]) -> tuple[Run, ...]:
    if not flat or len(flat) % 2 or not all(map(_is_int, flat)):
        raise PageError("corrupt", f"{brief(flat)} are no runs of slots")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _fits(metric: Metric, runs: Sequence[Run]) -> bool:
    """Whether so many slots can be a series of ``metric``."""
    count = sum(count for _, count in runs)
    return count == metric.slot_count or (metric.kind == "counter" and count > 1)


def _exist(runs: Sequence[Run], end: int) -> bool:
    """Whether all slots lie between the header and byte ``end``."""
    return all(
        8 * first >= HEADER_BYTES and count > 0 and 8 * (first + count) <= end
        for first, count in runs
    )


def _is_int(value: object) -> bool:
    return type(value) is int  # isinstance would take True for 1


def _metric_from(key: dict[str, Any]) -> Metric:
    """The declaration in a page as a ``Metric``; fields this version does not know are ignored."""
    try:
        return Metric(
            name=_text(key["name"]),
            kind=cast("Kind", _text(key["kind"])),
            help=_text(key["help"]),
            labels=tuple(map(_text, _array(key["labels"]))),
            unit=_text(key["unit"]),
            bounds=tuple(map(float, _array(key["bounds"]))),
            per_worker=bool(key["per_worker"]),
            fullest=tuple(map(_text, _array(key["fullest"]))),
            is_shared=bool(key["is_shared"]),
        )
    except (TypeError, ValueError, LookupError, OverflowError) as error:
        raise PageError("corrupt", f"declaration {brief(key)}: {error}") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise PageError("corrupt", f"{brief(value)} where text belongs")
    return value


def _array(value: object) -> list[Any]:
    if not isinstance(value, list):
        raise PageError("corrupt", f"{brief(value)} where a list belongs")
    return cast("list[object]", value)
