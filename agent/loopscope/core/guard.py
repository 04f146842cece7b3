"""The lock of the one process that watches over a directory of workers, and its number.

The kernel lets go of the lock when that process ends, however it ends. Whoever starts one takes the
lock first and hands it on, open as it is: so of several workers that find nobody watching, one
starts a process, and the lock is never free in between.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

NAME = "sentinel"
_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_DIGITS = 20


class Guard:
    """The lock, once it has been taken. ``fileno`` is to be handed on."""

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def take(cls, directory: Path) -> Guard | None:
        """The lock, unless somebody else has it. Raises ``OSError``."""
        file = os.open(directory / NAME, _FLAGS | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(file, 0)
        except BlockingIOError:
            os.close(file)
            return None
        except BaseException:
            os.close(file)
            raise
        return cls(file)

    def fileno(self) -> int:
        """The file that is locked."""
        return self._file

    def sign(self) -> None:
        """Say that it is this process that watches. Raises ``OSError``."""
        os.pwrite(self._file, str(os.getpid()).encode(), 0)

    def close(self) -> None:
        """Let go of it, unless it has been handed on: then it is the other's."""
        os.close(self._file)


def guardian(directory: Path) -> int | None:
    """Who watches over ``directory``: 0 while one is just being started, None if nobody does."""
    try:
        file = os.open(directory / NAME, _FLAGS)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.pread(file, _MOST_DIGITS, 0)
        return int(said) if said.isdigit() else 0
    except OSError:
        return None
    else:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)
        return None
    finally:
        os.close(file)
