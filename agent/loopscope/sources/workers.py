"""Which processes are workers of one application, without anybody saying so.

A server that starts workers opens the socket they listen on, keeps it, and hands it to each of
them: gunicorn, uvicorn, hypercorn and granian do, also where there is one worker that is replaced
on reload. So a worker is known by such a socket that its parent has open as well, and those of
one application by having the same parent and the same sockets. Services that were merely started
from one shell share no socket with it.

The parent may well be process 1: that is what a server is in its container. A service that was
started by systemd shares with it, too, the socket that systemd listens on for it; but it is told so
(``LISTEN_PID``), and its workers, if any, are its own.

This needs ``/proc``. Elsewhere, and where the parent is another user's, nothing is found, and the
directory to share has to be given.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

_PROC = Path("/proc")
_NAME = re.compile(r"(\d{1,7})-[0-9a-f]{16}", re.ASCII)
"""A group's directory: its parent's number, and what tells it from others of that number."""
_MOST_ENTRIES = 4096
"""Directories looked at when tidying up; the rest waits for next time."""


def home_of_group() -> Path | None:
    """The directory that the workers of this application share; None where this is not one of many.

    It need not exist yet; the one it is in belongs to this user alone, or should.
    Raises ``OSError`` where there is no place for temporary files.
    """
    parent = os.getppid()
    if parent == 0 or os.environ.get("LISTEN_PID") == str(os.getpid()):
        return None
    shared = sorted(_sockets(os.getpid()) & _sockets(parent))
    serving = [inode for inode in shared if _serves(inode)]
    with suppress(psutil.Error):
        return _home(parent, serving) if serving else None
    return None


def home_of_one() -> Path:
    """The directory of a process that shares its figures with nobody but a process beside it.

    Raises ``OSError`` where there is no place for temporary files.
    """
    return _home(os.getpid(), [])


def _home(process: int, sockets: list[str]) -> Path:
    """A directory of those that go by a process, whose number may be used again, and sockets.

    Raises ``OSError`` and ``psutil.Error``.
    """
    born = psutil.Process(process).create_time()
    key = f"{process} {born} {' '.join(sockets)}"
    name = f"{process}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    return _place() / name


def _place() -> Path:
    """Where the directories of all applications of this user are."""
    return Path(tempfile.gettempdir()) / f"loopscope-{os.geteuid()}"


def left_behind(home: Path) -> Iterator[Path]:
    """The directories beside ``home`` of applications whose servers, as far as we see, are gone.

    Their workers may be alive. Raises ``OSError``.
    """
    for entry in islice(home.parent.iterdir(), _MOST_ENTRIES):
        is_there = entry != home and not entry.is_symlink() and entry.is_dir()
        if is_there and _NAME.fullmatch(entry.name) and not has_server(entry):
            yield entry


def has_server(home: Path) -> bool:
    """Whether the process that the directory ``home`` goes by is there: it may start workers."""
    named = _NAME.fullmatch(home.name)
    return named is not None and psutil.pid_exists(int(named[1]))


def is_left_for_good(home: Path) -> bool:
    """Whether ``home``, once it has no workers, has nobody who could come back to it.

    So it is with a directory that workers found by themselves and whose server is gone; one that
    was named by somebody is theirs. Raises ``OSError`` where there is no place for such.
    """
    is_found = home.parent == _place() and _NAME.fullmatch(home.name) is not None
    return is_found and not has_server(home)


def _sockets(pid: int) -> set[str]:
    """``socket:[12345]`` of all sockets that a process has open, as far as we may know."""
    return {target for _, target in _descriptors(pid) if target.startswith("socket:")}


def _serves(inode: str) -> bool:
    """Whether one of our sockets, by what its descriptor links to, is there to be connected to."""
    ours = (number for number, target in _descriptors(os.getpid()) if target == inode)
    return any(map(_is_bound, ours))


def _descriptors(pid: int) -> Iterator[tuple[int, str]]:
    """Number and target of everything a process has open, as far as we may know."""
    with suppress(OSError):
        for entry in (_PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                yield int(entry.name), str(entry.readlink())


def _is_bound(descriptor: int) -> bool:
    """Whether a socket has an address and no peer: it listens, or will as soon as we serve."""
    with suppress(OSError), _looked_at(descriptor) as ours:
        kind = ours.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
        if kind == socket.SOCK_STREAM and _has_address(ours):
            try:
                ours.getpeername()
            except OSError:
                return True
    return False


def _looked_at(descriptor: int) -> socket.socket:
    """A socket object that is only asked, never used. Raises ``OSError``.

    It is said to be non-blocking, whatever it is, for then it is left as it is: otherwise it would
    be made non-blocking, for all who have it, where the service calls ``setdefaulttimeout``.
    """
    number = os.dup(descriptor)
    try:
        return socket.socket(type=socket.SOCK_STREAM | socket.SOCK_NONBLOCK, fileno=number)
    except OSError:
        os.close(number)
        raise


def _has_address(ours: socket.socket) -> bool:
    name: Any = ours.getsockname()
    if ours.family in (socket.AF_INET, socket.AF_INET6):
        return bool(name[1])
    return ours.family == socket.AF_UNIX and bool(name)
