"""Where a worker's siblings ask it for what it alone knows: a unix socket beside its page.

For this user only, by the socket's own permissions besides those of the directory; so there is no
token. What is served is no contract: it is meant for workers of the same version (``siblings``).

    curl --unix-socket .../4711-1700000000000000000.sock http://worker/own/requests
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

_LONGEST = 64
"""Bytes of a directory's name beside which there is room for a socket's: addresses have some 100
bytes, of whatever a path may have."""


class Hatch:
    """A socket at ``path`` that listens from ``open`` to ``close``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def fileno(self) -> int:
        """The descriptor of its socket; -1 where it does not listen."""
        bound = self._socket
        return -1 if bound is None else bound.fileno()

    def open(self, backlog: int) -> socket.socket:
        """Listen. Raises ``OSError``; long names of directories take ``/proc``."""
        bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with suppress(OSError):  # Linux makes the file with this mode; others refuse
                os.fchmod(bound.fileno(), 0o600)
            with reachable(self._path.parent) as folder:
                bound.bind(f"{folder}/{self._path.name}")
            self._path.chmod(0o600)
            bound.listen(backlog)
            bound.setblocking(False)
        except BaseException:
            bound.close()
            raise
        self._socket = bound
        return bound

    def close(self) -> None:
        """Listen no longer, and leave nothing behind."""
        bound, self._socket = self._socket, None
        if bound is not None:
            bound.close()
            with suppress(OSError):
                self._path.unlink()

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""
        bound, self._socket = self._socket, None
        if bound is not None:
            bound.close()


@contextmanager
def reachable(directory: Path) -> Generator[str]:
    """A name of ``directory`` that is short enough to be part of a socket's address.

    Raises ``OSError`` where it cannot be opened. Short by Linux' ``/proc``; elsewhere what is too
    long is not there under that name either.
    """
    if len(os.fsencode(directory)) <= _LONGEST:
        yield str(directory)
        return
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{number}"
    finally:
        os.close(number)
