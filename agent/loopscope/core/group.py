"""The pages of one application's workers: those of the living, and what the dead have left behind.

Workers share a directory. Each keeps a page there and a lock on it, which the kernel lets go of
when the worker ends, however it ends: a page that nobody has locked is a dead worker's. Of the dead
only counts are of interest. They are folded into one file, the archive, so that workers which come
and go do not leave a file each.

A count is folded exactly once, whenever whoever folds is killed. A new archive is written aside and
put in place by one ``rename``, and it says itself which pages are in it; only then are these
deleted. A page that is still there although the archive names it is deleted next time, and never
counted again. Readers read pages first and the archive last, so what is folded meanwhile is found
in one place or in both, and the archive says which.

The directory is only ever used if it is this user's own and nobody else may write to it. What is in
there is believed to be pages by what it says, not by its name; links are not followed, and what
cannot be read is left alone and counted.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loopscope.core.clock import Clock
from loopscope.core.merge import Family, ReadPage, merge
from loopscope.core.metric import Metric
from loopscope.core.page import (
    SUFFIX,
    UNBORN,
    Page,
    PageError,
    PageReader,
    read_open,
)

ENDS = Metric(
    "loopscope_worker_ends_total",
    "counter",
    "Workers that have ended: closed in good order, or killed, and then with what they had not yet "
    "written down.",
    ("how",),
)
WORKERS = Metric("loopscope_workers", "gauge", "Workers that are alive.")
SKIPPED = Metric(
    "loopscope_skipped_pages",
    "gauge",
    "Files among the workers' pages that could not be read at the latest scrape, by what is wrong.",
    ("reason",),
)

METRICS = (WORKERS, ENDS, SKIPPED)

_ARCHIVE = "archive"
_LOCK = "lock"
_VOICE = "voice"
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDED = Metric("_folded", "gauge", "Pages that are in this archive.", ("page",))
"""Not published: what an archive says of itself."""
_MOST_PAGES = 4096
"""Files looked at: a directory that has more is not ours alone."""

_BIRTH = 60.0
"""Seconds that making a file takes at most."""


class UnsafeDirectoryError(OSError):
    """A directory that others may write to, or that is not a directory of this user's."""


@dataclass(frozen=True, slots=True)
class _Archive:
    page: ReadPage | None
    folded: frozenset[str]


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
        self.skipped: dict[str, int] = {}
        """Files that could not be read then, by reason."""
        self._clock = clock
        self._own = own
        self._voice: int | None = None
        self._readers: dict[Path, PageReader] = {}

    def pages(self) -> list[ReadPage]:
        """What the others have counted, the dead included."""
        self.skipped = {}
        found: list[tuple[Path, ReadPage]] = []
        for path in self._paths():
            with self._opened(path) as file:
                if file is not None:
                    page = self._read(path, file, alive=not _is_free(file))
                    if page is not None:
                        found.append((path, page))
        archive = self._archive()
        pages = [page for path, page in found if path.name not in archive.folded]
        self.alive = sum(page.alive for page in pages)
        self._forget_readers({path for path, _ in found})
        return pages if archive.page is None else [archive.page, *pages]

    def families(self) -> list[Family]:
        """What there is to say of the workers themselves, as of the latest look."""
        workers = Family(WORKERS, ())
        workers.put((), [float(self.alive + 1)])
        skipped = Family(SKIPPED, SKIPPED.labels)
        for reason, count in self.skipped.items():
            skipped.put((reason,), [float(count)])
        return [workers, skipped] if skipped.rows else [workers]

    def speak(self) -> None:
        """Say that this worker answers for all, until it ends. Raises ``OSError``."""
        self.hush()
        self._voice = os.open(self.directory / _VOICE, _FLAGS, 0o600)
        _lock(self._voice)

    def hush(self) -> None:
        """Say so no longer; in a forked child as well, which has inherited the file."""
        voice, self._voice = self._voice, None
        if voice is not None:
            os.close(voice)

    def is_spoken_for(self) -> bool:
        """Whether one of the workers answers for all."""
        file = _open(self.directory / _VOICE)
        if file is None:
            return False
        try:
            return not _is_free(file)
        finally:
            os.close(file)

    def fold(self) -> int:
        """Put what dead workers have left into the archive; how many they were.

        Nothing happens where another worker is just at it. Raises ``OSError`` or ``PageFullError``
        where there is no room for a new archive; then all is as before.
        """
        with self._alone() as is_alone:
            if not is_alone:
                return 0
            archive = self._archive()
            self._clean_up()
            dead: list[tuple[Path, ReadPage, int]] = []
            try:
                for path in self._paths():
                    if path.name in archive.folded:
                        path.unlink(missing_ok=True)
                    else:
                        self._take_dead(path, dead)
                if dead:
                    self._write(archive, [(path, page) for path, page, _ in dead])
                    for path, _, _ in dead:
                        path.unlink(missing_ok=True)
            finally:
                for _, _, file in dead:
                    os.close(file)
            return len(dead)

    def _clean_up(self) -> None:
        """Delete what was left by whoever was killed while making a file. Alone only."""
        for path in self.directory.glob(f"{_ARCHIVE}.*"):
            path.unlink(missing_ok=True)
        for path in self.directory.glob(f"*{UNBORN}"):
            with suppress(FileNotFoundError):
                if time.time() - path.stat(follow_symlinks=False).st_mtime > _BIRTH:
                    path.unlink()

    def _take_dead(self, path: Path, dead: list[tuple[Path, ReadPage, int]]) -> None:
        """Add the page at ``path`` to the ``dead``, locked, if it is one."""
        file = _open(path)
        if file is None:
            return
        page = self._read(path, file, alive=False) if _lock(file) else None
        if page is None:
            os.close(file)
        else:
            dead.append((path, page, file))

    def _write(self, archive: _Archive, dead: Sequence[tuple[Path, ReadPage]]) -> None:
        old = [] if archive.page is None else [archive.page]
        new = Page.in_file(self.directory / f"{_ARCHIVE}.{os.getpid()}", self._clock)
        assert new.path is not None
        try:
            for family in merge([*old, *(page for _, page in dead)]):
                if family.metric.name not in (ENDS.name, _FOLDED.name):
                    for labels, raw in family.rows.items():
                        _put(new, family.metric, labels, family.values(raw))
            for how, count in _ends(old, [page for _, page in dead]).items():
                _put(new, ENDS, (how,), [count])
            for path, _ in dead:
                new.allocate(_FOLDED, (path.name,))
            new.close()
            new.path.rename(self.directory / _ARCHIVE)
        except BaseException:
            new.close(remove=True)
            raise

    def _archive(self) -> _Archive:
        path = self.directory / _ARCHIVE
        with self._opened(path) as file:
            page = None if file is None else self._read(path, file, alive=False, known=False)
        folded = () if page is None else page.reader.series
        names = frozenset(each.labels[0] for each in folded if each.metric.name == _FOLDED.name)
        return _Archive(page, names)

    def _read(self, path: Path, file: int, *, alive: bool, known: bool = True) -> ReadPage | None:
        reader = self._readers.setdefault(path, PageReader()) if known else PageReader()
        try:
            buffer = read_open(file, path)
            header = reader.update(buffer)
        except PageError as error:
            self._readers.pop(path, None)
            self.skipped[error.reason] = self.skipped.get(error.reason, 0) + 1
            return None
        return ReadPage(reader, buffer, str(header.pid), alive=alive, closed=header.closed)

    def _paths(self) -> list[Path]:
        own = self._own()
        found = sorted(self.directory.glob(f"*{SUFFIX}"))[:_MOST_PAGES]
        return [path for path in found if path != own]

    @contextmanager
    def _opened(self, path: Path) -> Generator[int | None]:
        file = _open(path)
        try:
            yield file
        finally:
            if file is not None:
                os.close(file)

    @contextmanager
    def _alone(self) -> Generator[bool]:
        """Whether this is the one worker that folds."""
        file = os.open(self.directory / _LOCK, _FLAGS, 0o600)
        try:
            yield _lock(file)
        finally:
            os.close(file)

    def _forget_readers(self, there: set[Path]) -> None:
        for path in self._readers.keys() - there:
            del self._readers[path]


def remove_if_deserted(directory: Path) -> None:
    """Delete a directory in which every worker is dead: what was left there nobody will read."""
    files = list(directory.iterdir())
    for path in files:
        file = _open(path)
        if file is not None:
            is_dead = _is_free(file)
            os.close(file)
            if not is_dead or time.time() - path.stat(follow_symlinks=False).st_mtime < _BIRTH:
                return
    for path in files:
        path.unlink(missing_ok=True)
    directory.rmdir()


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


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:  # folded meanwhile, a link, a directory, somebody else's
        return None


def _lock(file: int) -> bool:
    """Lock an open file for as long as it stays open; whether that was possible."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_free(file: int) -> bool:
    """Whether nobody has an open file locked."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        return True
    return False
