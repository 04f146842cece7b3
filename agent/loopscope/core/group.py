"""The pages of one application's workers: those of the living, and what the dead have left behind.

Workers share a directory. Each keeps a page there and a lock on it, which the kernel lets go of
when the worker ends, however it ends: a page that nobody has locked is a dead worker's. Of the dead
counts are of interest, and for a while what they noted (``core.notes``). Counts are folded into one
file, the archive, so that workers which come and go do not leave a file each.

A count is folded exactly once, whenever whoever folds is killed. A new archive is written aside and
put in place by one ``rename``, and it says itself which pages are in it; only then are these
deleted. A page that is still there although the archive names it is deleted next time, and never
counted again. Readers read pages first and the archive last, so what is folded meanwhile is found
in one place or in both, and the archive says which; they read again if it is not the archive that
was there when they began. An archive that turns out to be damaged is set aside, not replaced.

The directory is only ever used if it is this user's own and nobody else may write to it. What is in
there is believed to be pages by what it says, not by its name; links are not followed, and what
cannot be read is left alone and counted.

Locks are ``flock``'s, which a forked child inherits along with the open file: who still has it open
has it locked. Hence everything locked is unlocked before it is closed, which holds for the child's
copy too, and ``abandon`` closes, in a child, what its parent has locked at that moment.
"""

from __future__ import annotations

import fcntl
import logging
import os
import stat
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from loopscope.core.claim import Claim
from loopscope.core.claim import judged as claim
from loopscope.core.clock import Clock
from loopscope.core.guard import NAME as GUARD
from loopscope.core.merge import Family, ReadPage, merge
from loopscope.core.metric import Metric
from loopscope.core.notes import OLDER, Note
from loopscope.core.notes import SUFFIX as NOTES
from loopscope.core.notes import read as read_notes
from loopscope.core.page import (
    DEFAULT_CAPACITY,
    HEADER_BYTES,
    LARGEST,
    SUFFIX,
    UNBORN,
    Page,
    PageError,
    PageReader,
    read_file,
    read_header,
    read_open,
)

logger = logging.getLogger("loopscope")

ENDS = Metric(
    "loopscope_worker_ends_total",
    "counter",
    "Workers that have ended: closed in good order, or killed, and then with what they had not yet "
    "written down.",
    ("how",),
)
STARTS = Metric(
    "loopscope_worker_starts_total",
    "counter",
    "Workers that have started: beyond as many as there should be, these are restarts.",
)
WORKERS = Metric("loopscope_workers", "gauge", "Workers that are alive.")
SKIPPED = Metric(
    "loopscope_skipped_pages",
    "gauge",
    "Files among the workers' pages that could not be read at the latest scrape, by what is wrong.",
    ("reason",),
)

METRICS = (WORKERS, STARTS, ENDS, SKIPPED)

SOCKET = ".sock"
"""What a worker's socket ends in, which is called like its page before that."""

_ARCHIVE = "archive"
_DAMAGED = "damaged-archive"
_LOCK = "lock"
_VOICE = "voice"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDED = Metric("_folded", "gauge", "Pages that are in this archive.", ("page",))
"""Not published: what an archive says of itself."""
_NAME_BYTES = 256
"""What one such name takes in an archive, at most."""

_MOST_FILES = 65_536
"""Names looked at: a directory that has more is not ours alone."""
_MOST_PAGES = 4096
_MOST_DEAD_NOTES = 32
"""Dead workers whose last words are kept."""
_BATCH = 64
"""Pages folded at once: all of them are in memory then."""
_TRIES = 10
"""How often readers begin anew because the archive has changed meanwhile."""

_BIRTH = 60.0
"""Seconds that making a file takes at most."""
_DESERTED = 3600.0
"""Seconds without a change after which a directory of dead workers is not coming back to life."""


class UnsafeDirectoryError(OSError):
    """A directory that others may write to, or that is not a directory of this user's."""


@dataclass(frozen=True, slots=True)
class _Archive:
    """An archive as read. ``head`` tells it from all others; it is empty where there is none."""

    head: bytes = b""
    page: ReadPage | None = None
    folded: frozenset[str] = frozenset()
    ends: int = 0
    """Workers that are in it."""


def make_safe(directory: Path) -> None:
    """Make ``directory`` if it is missing, for this user only; see that it is safe to use.

    Raises ``OSError``, of which ``UnsafeDirectoryError`` is one.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.stat(follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise UnsafeDirectoryError(f"{directory} is no directory")
    if found.st_uid != os.geteuid():
        raise UnsafeDirectoryError(f"{directory} belongs to user {found.st_uid}")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UnsafeDirectoryError(f"others may write to {directory}")


class Group:
    """Reads and folds the pages in ``directory``, but for this worker's ``own``. One thread."""

    def __init__(self, directory: Path, clock: Clock, own: Callable[[], Path | None]) -> None:
        self.directory = directory
        self.alive = 0
        """Workers that were alive at the latest look, this one not counted."""
        self.started = 0
        """Workers that had ever started then, this one not counted."""
        self.has_dead = False
        """Whether there was something to fold then."""
        self.skipped: dict[str, int] = {}
        """Files that could not be read then, by reason."""
        self._clock = clock
        self._own = own
        self._voice: int | None = None
        self._folding: int | None = None
        self._readers: dict[Path, PageReader] = {}
        self._latest = _Archive()

    def pages(self) -> list[ReadPage]:
        """What the others have counted, the dead included.

        A page may be folded, and its name forgotten by yet another archive, between reading the one
        and reading the other: so all is read again if the archive is not the same as before.
        """
        pages: list[ReadPage] = []
        for _ in range(_TRIES):
            before = self._archive_or_none().head
            pages = self._look()
            if self._latest.head == before:
                break
        return pages

    def _look(self) -> list[ReadPage]:
        self.skipped = {}
        found: list[tuple[Path, ReadPage]] = []
        for path in self._paths():
            with self._opened(path) as file:
                if file is not None:
                    page = self._read(path, file, alive=not _is_free(file))
                    if page is not None:
                        found.append((path, page))
        archive = self._archive_or_none()
        pages = [page for path, page in found if path.name not in archive.folded]
        self.alive = sum(page.alive for page in pages)
        self.started = len(pages) + archive.ends
        self.has_dead = not all(page.alive for _, page in found)
        self._forget_readers({path for path, _ in found})
        return pages if archive.page is None else [archive.page, *pages]

    def notes(self, besides: Path | None = None) -> list[tuple[list[Note], bool]]:
        """What each of the others has noted, the latest dead included, and whether it is alive.

        ``besides`` is a file to be left out.
        """
        own = self._own()
        known = (besides, None if own is None else own.with_suffix(NOTES))
        notes = [path for path in self._all_notes() if path not in known]
        return [(read_notes(path), self._is_alive(path)) for path in notes]

    def _all_notes(self) -> list[Path]:
        with suppress(OSError):
            return sorted(islice(self.directory.glob(f"*{NOTES}"), _MOST_PAGES))
        return []

    def _is_alive(self, notes: Path) -> bool:
        """Whether the worker that these ``notes`` are of has its page locked."""
        with suppress(OSError):
            return _is_in_use(notes.with_suffix(SUFFIX))
        return False

    def living(self) -> dict[Path, str]:
        """The pages of the others that are alive, and these workers' numbers: a look of its own."""
        found: dict[Path, str] = {}
        skipped = self.skipped
        self.skipped = {}
        for path in self._paths():
            with self._opened(path) as file:
                if file is not None and not _is_free(file):
                    with suppress(OSError, PageError):
                        found[path] = str(read_header(os.pread(file, HEADER_BYTES, 0), LARGEST).pid)
        self.skipped = skipped  # what is wrong with the others, the latest look at all has said
        return found

    def workers(self) -> list[int]:
        """The processes of the others that are alive, in order; none that a page only names."""
        found: list[int] = []
        for path, number in self.living().items():
            with self._opened(path) as file:
                if file is not None and claim(int(number), file) is not Claim.FALSE:
                    found.append(int(number))
        return sorted(found)

    def families(self) -> list[Family]:
        """What there is to say of the workers themselves, as of the latest look."""
        workers = Family(WORKERS, ())
        us = self._own() is not None
        workers.put((), [float(self.alive + us)])
        starts = Family(STARTS, ())
        starts.put((), [float(self.started + us)])
        skipped = Family(SKIPPED, SKIPPED.labels)
        for reason, count in self.skipped.items():
            skipped.put((reason,), [float(count)])
        return [workers, starts, skipped] if skipped.rows else [workers, starts]

    def speak(self) -> None:
        """Say that this worker answers for all, until it ends. Raises ``OSError``."""
        self.hush()
        self._voice = os.open(self.directory / _VOICE, _FLAGS, 0o600)
        # Shared, and waiting: whoever asks has it to themselves for a moment, and a speaker that is
        # just leaving may still have it.
        fcntl.flock(self._voice, fcntl.LOCK_SH)

    def hush(self) -> None:
        """Say so no longer."""
        voice, self._voice = self._voice, None
        if voice is not None:
            _unlock_and_close(voice)

    def abandon(self) -> None:
        """In a forked child: let go of the files the parent has locked, and leave them locked."""
        for file in (self._voice, self._folding):
            if file is not None:
                os.close(file)
        self._voice = self._folding = None

    def is_spoken_for(self) -> bool:
        """Whether one of the workers answers for all."""
        try:
            file = os.open(self.directory / _VOICE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _lock(file)
        finally:
            _unlock_and_close(file)

    def fold(self) -> int:
        """Put what dead workers have left into the archive; how many they were.

        Nothing happens where another worker is just at it. Raises ``OSError`` or ``PageFullError``
        where there is no room for a new archive, or the old one cannot be read for the moment; then
        all is as before.
        """
        with self._alone() as is_alone:
            if not is_alone:
                return 0
            self._clean_up()
            count = 0
            paths = iter(self._paths())
            while batch := list(islice(self._dead(paths), _BATCH)):
                self._write(self._sound_archive(), batch)
                for path, _ in batch:
                    _unlink(path)
                count += len(batch)
            self._remove_sockets()
            return count

    def _clean_up(self) -> None:
        """Delete what was left by whoever was killed at it. Alone only."""
        for name in self._sound_archive().folded:
            _unlink(self.directory / name)
        for path in self.directory.glob(f"{_ARCHIVE}.*"):
            _unlink(path)
        dead = [path for path in self._all_notes() if not self._is_alive(path)]
        for path in sorted(dead, key=_changed)[:-_MOST_DEAD_NOTES]:
            _unlink(path)
            _unlink(path.with_suffix(OLDER))
        for path in self.directory.glob(f"*{SUFFIX}{UNBORN}"):
            with suppress(OSError):
                if time.time() - path.lstat().st_mtime > _BIRTH and not _is_in_use(path):
                    path.unlink()

    def _remove_sockets(self) -> None:
        """Delete the sockets that no page is beside: whoever listened had one first. Alone only."""
        for path in self.directory.glob(f"*{SOCKET}"):
            if not os.path.lexists(path.with_suffix(SUFFIX)):
                _unlink(path)

    def _dead(self, paths: Iterator[Path]) -> Iterator[tuple[Path, ReadPage]]:
        """The pages among ``paths`` that nobody writes any more and that are in no archive."""
        for path in paths:
            if path.name in self._latest.folded:
                continue  # it could not be deleted
            page = None
            with self._opened(path) as file:
                if file is not None and _is_free(file):
                    page = self._read(path, file, alive=False)
            if page is not None:
                yield path, page

    def _write(self, archive: _Archive, dead: Sequence[tuple[Path, ReadPage]]) -> None:
        old = [] if archive.page is None else [archive.page]
        pages = [page for _, page in dead]
        names = [name for name in archive.folded if os.path.lexists(self.directory / name)]
        names += [path.name for path, _ in dead]
        room = sum(len(page.buffer) for page in [*old, *pages]) + _NAME_BYTES * (2 + len(names))
        new = Page.in_file(
            self.directory / f"{_ARCHIVE}.{os.getpid()}",
            self._clock,
            capacity=min(max(DEFAULT_CAPACITY, room), LARGEST),
        )
        assert new.path is not None
        try:
            for family in merge([*old, *pages], every_shape=True):
                if family.metric.name not in (ENDS.name, _FOLDED.name):
                    for labels, raw in family.rows.items():
                        _put(new, family.metric, labels, family.values(raw))
            for how, count in _ends(old, pages).items():
                _put(new, ENDS, (how,), [count])
            for name in names:
                new.allocate(_FOLDED, (name,))
            new.close()
            new.path.rename(self.directory / _ARCHIVE)
        except BaseException:
            new.close(remove=True)
            raise

    def _sound_archive(self) -> _Archive:
        """The archive to go on from; a damaged one is set aside. Raises ``OSError``. Alone only."""
        try:
            return self._archive()
        except PageError as error:
            aside = self.directory / f"{_DAMAGED}-{time.time_ns()}"
            (self.directory / _ARCHIVE).rename(aside)
            logger.warning(
                "loopscope: what ended workers had counted cannot be read (%s); it is kept as %s, "
                "and counting starts anew",
                error,
                aside,
            )
            self._latest = _Archive()
            return self._latest

    def _archive_or_none(self) -> _Archive:
        """The archive as far as it can be read; counted if it cannot."""
        try:
            return self._archive()
        except PageError as error:
            self._skip(error.reason)
        except OSError:
            self._skip("unreadable")
        self._latest = _Archive()
        return self._latest

    def _archive(self) -> _Archive:
        """The archive that is in place, parsed only if it is new.

        Raises ``PageError`` where it will never be readable, ``OSError`` where it is not just now.
        """
        path = self.directory / _ARCHIVE
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise PageError("foreign", f"{path} is no regular file")
            with path.open("rb") as file:
                head = file.read(HEADER_BYTES)
        except FileNotFoundError:
            self._latest = _Archive()
            return self._latest
        if head != self._latest.head or not head:
            self._latest = _parsed(path)
        return self._latest

    def _read(self, path: Path, file: int, *, alive: bool) -> ReadPage | None:
        reader = self._readers.setdefault(path, PageReader())
        try:
            buffer = read_open(file, path)
            header = reader.update(buffer)
        except PageError as error:
            self._readers.pop(path, None)
            self._skip(error.reason)
            return None
        return ReadPage(reader, buffer, str(header.pid), alive=alive, closed=header.closed)

    def _skip(self, reason: str) -> None:
        self.skipped[reason] = self.skipped.get(reason, 0) + 1

    def _paths(self) -> list[Path]:
        """What may be the pages of others; counts what looks like one and is not."""
        own = self._own()
        found: list[str] = []
        try:
            with os.scandir(self.directory) as entries:
                for entry in islice(entries, _MOST_FILES):
                    if entry.name.startswith(_DAMAGED):
                        self._skip("damaged archive")
                    elif entry.name.endswith(SUFFIX):
                        if entry.is_file(follow_symlinks=False):
                            found.append(entry.name)
                        else:
                            self._skip("foreign")
                if next(entries, None) is not None:
                    self._skip("surplus")
        except OSError:  # somebody has tidied up below us
            self._skip("unreadable")
        for _ in found[_MOST_PAGES:]:
            self._skip("surplus")
        paths = (self.directory / name for name in sorted(found)[:_MOST_PAGES])
        return [path for path in paths if path != own]

    @contextmanager
    def _opened(self, path: Path) -> Generator[int | None]:
        file = self._open(path)
        try:
            yield file
        finally:
            if file is not None:
                os.close(file)

    def _open(self, path: Path) -> int | None:
        try:
            file = _open(path)
        except FileNotFoundError:  # folded meanwhile
            return None
        except OSError:
            self._skip("unreadable")
            return None
        if os.fstat(file).st_uid != os.geteuid():
            os.close(file)
            self._skip("foreign")
            return None
        return file

    @contextmanager
    def _alone(self) -> Generator[bool]:
        """Whether this is the one worker that folds."""
        path = self.directory / _LOCK
        self._folding = file = os.open(path, _FLAGS, 0o600)
        try:
            # Who tidies up temporary files may have taken ours away, and there is another by now.
            yield _lock(file) and path.lstat().st_ino == os.fstat(file).st_ino
        finally:
            self._folding = None
            _unlock_and_close(file)

    def _forget_readers(self, there: set[Path]) -> None:
        for path in self._readers.keys() - there:
            del self._readers[path]


def remove_if_deserted(directory: Path, *, after: float = _DESERTED) -> bool:
    """Delete a directory in which every worker has been dead for an hour; whether it was one.

    Only for directories whose workers' parent is gone: nobody will come and read what was left.
    Nothing is deleted where there is anything that is not ours. Who knows that all have ended need
    not wait: ``after`` is the time without a change, in seconds. Raises ``OSError``.
    """
    files = list(islice(directory.iterdir(), _MOST_FILES))
    changed = max(path.lstat().st_mtime for path in (directory, *files))
    if time.time() - changed < after or not all(map(_is_ours, files)):
        return False
    if any(_is_in_use(path) for path in files if not path.is_socket()):
        return False
    for path in files:
        path.unlink(missing_ok=True)
    directory.rmdir()
    return True


def _is_ours(path: Path) -> bool:
    """Whether a file in a group's directory is one that we have made."""
    known = path.name in (_LOCK, _VOICE, GUARD, _ARCHIVE) or path.name.startswith(
        (f"{_ARCHIVE}.", _DAMAGED)
    )
    mode = path.lstat().st_mode
    if stat.S_ISSOCK(mode):
        return path.name.endswith(SOCKET)
    return stat.S_ISREG(mode) and (
        known or path.name.endswith((SUFFIX, f"{SUFFIX}{UNBORN}", NOTES, OLDER))
    )


def _is_in_use(path: Path) -> bool:
    """Whether somebody has the file at ``path`` locked, or may have. Raises ``OSError``."""
    file = _open(path)
    try:
        return not _is_free(file)
    finally:
        os.close(file)


def _parsed(path: Path) -> _Archive:
    """The archive at ``path``. Raises ``PageError``, and ``OSError`` where it may yet be read."""
    try:
        buffer = read_file(path)
    except PageError as error:
        if error.reason == "unreadable":
            raise OSError(str(error)) from error
        raise
    reader = PageReader()
    reader.update(buffer)
    names = (each.labels[0] for each in reader.series if each.metric.name == _FOLDED.name)
    folded = frozenset(name for name in names if name.endswith(SUFFIX) and os.sep not in name)
    page = ReadPage(reader, buffer, alive=False)
    return _Archive(buffer[:HEADER_BYTES], page, folded, int(sum(_ends([page], []).values())))


def _ends(old: Sequence[ReadPage], dead: Sequence[ReadPage]) -> dict[str, float]:
    """How workers have ended, so far."""
    ends: dict[str, float] = {}
    for family in merge(old):
        if family.metric.name == ENDS.name:
            for (how,), raw in family.rows.items():
                ends[how] = family.values(raw)[0]
    for page in dead:
        how = "closed" if page.closed else "killed"
        ends[how] = ends.get(how, 0.0) + 1.0
    return ends


def _put(page: Page, metric: Metric, labels: Sequence[str], values: Sequence[float]) -> None:
    base = page.allocate(metric, labels)
    for offset, value in enumerate(values):
        page.slots[base + offset] = value


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _changed(path: Path) -> float:
    """When a file was written to last; long ago if it is gone."""
    with suppress(OSError):
        return path.lstat().st_mtime
    return 0.0


def _unlink(path: Path) -> None:
    with suppress(OSError):  # what stays is not counted again, and tried again
        path.unlink()


def _lock(file: int) -> bool:
    """Lock an open file; whether that was possible."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _unlock_and_close(file: int) -> None:
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _is_free(file: int) -> bool:
    """Whether nobody has an open file locked, for certain."""
    with suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        return True
    return False
