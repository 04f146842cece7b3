"""Which processes are workers of one application, without anybody saying so.

A server that starts workers opens the socket they listen on, keeps it, and hands it to each of
them: gunicorn, uvicorn, hypercorn and granian do, also where there is one worker that is replaced
on reload. So a worker is known by such a socket that its parent has open as well, and those of
one application by having the same parent and the same sockets. Services that were merely started
from one shell share no socket with it.

This needs ``/proc``. Elsewhere, and where the parent is another user's, nothing is found, and the
directory to share has to be given.
"""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

_PROC = Path("/proc")


def home_of_group() -> Path | None:
    """The directory that the workers of this application share; None where this is not one of many.

    It need not exist yet; the one it is in belongs to this user alone, or should.
    """
    parent = os.getppid()
    if parent <= 1:
        return None
    shared = sorted(_sockets(os.getpid()) & _sockets(parent))
    serving = [inode for inode in shared if _serves(inode)]
    if not serving:
        return None
    with suppress(psutil.Error):
        born = psutil.Process(parent).create_time()
        key = f"{parent} {born} {' '.join(serving)}"
        name = f"{parent}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        return Path(tempfile.gettempdir()) / f"loopscope-{os.geteuid()}" / name
    return None


def parent_of_group(home: Path) -> int:
    """The process whose workers shared ``home``, a path as ``home_of_group`` gives it; 0: none."""
    first, _, _ = home.name.partition("-")
    return int(first) if first.isdigit() else 0


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
    with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as ours:
        if ours.type == socket.SOCK_STREAM and _has_address(ours):
            try:
                ours.getpeername()
            except OSError:
                return True
    return False


def _has_address(ours: socket.socket) -> bool:
    name: Any = ours.getsockname()
    return bool(name[1]) if ours.family != socket.AF_UNIX else bool(name)
