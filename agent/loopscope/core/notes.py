"""Notes: what a worker has to tell in words, in a file beside its page.

A page holds numbers; what cannot be counted, a stall with its stack, is noted here, one line of
JSON each. A line is written by one system call as soon as there is something to say, and the kernel
keeps it whatever becomes of the process: so the last words of a killed worker can be read by any
other, and the others' stalls without asking them.

The file is bounded: once full it becomes the older half, in place of the one before, and a new one
is begun. Readers take what they can make sense of: a line that was cut short by a full disk, or
garbage, is passed over.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from json import dumps, loads  # by name: a service's tests may patch json.dumps and count calls
from pathlib import Path
from typing import Any, cast

from loopscope.core.faults import Faults

SUFFIX = ".notes"
OLDER = f"{SUFFIX}.older"
"""What the files end in: the one that is written, and the one that was full."""

MOST_BYTES = 512 * 1024
"""Of one of the two files."""
_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC

Note = dict[str, Any]


class Notes:
    """The writing side, for one thread. ``path`` ends in ``SUFFIX``, and is made when needed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._size = 0

    def write(self, note: Mapping[str, Any]) -> None:
        """Add ``note``, which JSON can hold. Raises ``OSError`` where it cannot be kept.

        What would fill a file on its own is no note, and left out.
        """
        line = dumps(note, separators=(",", ":")).encode() + b"\n"
        if len(line) > MOST_BYTES:
            return
        if self._file is not None and self._size + len(line) > MOST_BYTES:
            self._turn()
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS
            self._file = os.open(self.path, flags, 0o600)
            self._size = os.fstat(self._file).st_size
        self._size += os.write(self._file, line)

    def write_or_report(self, note: Mapping[str, Any], faults: Faults) -> None:
        """`write`, on behalf of somebody who has other things to do than to keep notes."""
        if not faults.is_off("notes"):
            try:
                self.write(note)
            except OSError as error:
                faults.report("notes", error)

    def _turn(self) -> None:
        """Begin a new file."""
        self.close()
        self.path.replace(self.path.with_suffix(OLDER))

    def close(self) -> None:
        """Let go of the file until there is more to write. What is written stays."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)

    abandon = close
    """In a forked child: the file is the parent's."""


def read(path: Path) -> list[Note]:
    """All notes that begin with ``path`` (which ends in ``SUFFIX``), oldest first.

    What is missing, not this user's own, or no note is left out.
    """
    notes: list[Note] = []
    for file in (path.with_suffix(OLDER), path):
        for line in _content(file).split(b"\n"):
            with suppress(ValueError, RecursionError):
                note = loads(line)
                if isinstance(note, dict):
                    notes.append(cast("Note", note))
    return notes


def _content(path: Path) -> bytes:
    """The file's last bytes, no more than one of ours may have; nothing if it is none of ours."""
    with suppress(OSError):
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _FLAGS)
        try:
            status = os.fstat(file)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                return os.pread(file, MOST_BYTES, max(0, status.st_size - MOST_BYTES))
        finally:
            os.close(file)
    return b""
