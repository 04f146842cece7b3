"""What the kernel knows of listening sockets: which there are, and how many wait in their queues.

A connection is made by the kernel alone and waits in the listening socket's queue until the server
accepts it; once the queue is full, further ones are dropped and tried again by their clients, a
second or more later. That works without the service, so its queue says how a blocked loop looks
from outside. For TCP the kernel tells through ``TCP_INFO`` (in a listening socket's, "unacked" is
the queue and "sacked" the backlog in force, whatever was asked for), for Unix sockets through
netlink's ``sock_diag``. Neither takes any privilege.

All is asked of descriptors by number, through libc. A socket object around a number that is not
ours would close it when dropped, and makes what it wraps non-blocking where the service has set
``socket.setdefaulttimeout``; a duplicate would keep a port open after the service has closed it.
The GIL is kept: none of these calls waits for anything.

Linux only: elsewhere there are no listening sockets to be found here.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

_MOST_NUMBERS: Final = 65_536
_BREATHE_EVERY: Final = 256
_TCP_INFO: Final = 11
_LISTENING: Final = 10
"""``TCP_LISTEN``, the state that ``struct tcp_info`` begins with."""
_INFO: Final = struct.Struct("=B23xII")
"""State, unacked, sacked; what lies between and behind is of no interest."""
_ADDRESS_BYTES: Final = 128
"""``struct sockaddr_storage``."""

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20
_REQUEST: Final = struct.Struct("=IHHIIBBHIIIII")
"""A netlink header (length, type, flags, number, port) and what is asked of one Unix socket:
family, protocol, padding, states, inode, what to show, and a cookie in two halves."""
_ANSWER_BYTES: Final = 32
"""A netlink header and ``struct unix_diag_msg``; attributes follow."""
_SHOW_QUEUE: Final = 0x10
_QUEUE: Final = 4
_ANY: Final = 0xFFFFFFFF

_libc = ctypes.PyDLL(None)


class Queue(NamedTuple):
    """Connections that wait to be accepted, and how many may."""

    length: int
    backlog: int


class Listening(NamedTuple):
    """A listening socket: its number now, and what tells it from whatever has that number later."""

    fd: int
    device: int
    inode: int

    @property
    def is_there(self) -> bool:
        """Whether the number still stands for the same socket."""
        try:
            status = os.fstat(self.fd)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == (self.device, self.inode)


class _Option:
    """One socket option, asked of any descriptor. For one thread at a time: the room is reused."""

    def __init__(self, level: int, name: int, size: int) -> None:
        self._room = ctypes.create_string_buffer(size)
        self._size = size
        self._length = ctypes.c_uint(size)
        self._arguments = level, name, self._room, ctypes.byref(self._length)

    def of(self, fd: int) -> bytes | None:
        """The option's value; None where the kernel refuses, or has another idea of its size."""
        self._length.value = self._size
        if _libc.getsockopt(fd, *self._arguments) or self._length.value != self._size:
            return None
        return self._room.raw


_ACCEPTS = _Option(socket.SOL_SOCKET, socket.SO_ACCEPTCONN, 4)
_INFORMS = _Option(socket.IPPROTO_TCP, _TCP_INFO, _INFO.size)


def listening() -> Iterator[Listening]:
    """All sockets of this process that listen, each once however many numbers it has.

    Numbers are tried one after the other. A directory of them would have to be read entry by entry,
    each with the GIL released, and with a busy loop every entry then takes a switch interval.
    """
    if sys.platform != "linux":
        return
    seen: set[int] = set()
    for fd in range(_numbers()):
        if fd % _BREATHE_EVERY == 0:
            time.sleep(0)  # hand over the GIL before anybody has to ask for it
        if listens(fd):
            try:
                status = os.fstat(fd)
            except OSError:  # closed meanwhile
                continue
            if status.st_ino not in seen:
                seen.add(status.st_ino)
                yield Listening(fd, status.st_dev, status.st_ino)


def listens(fd: int) -> bool:
    """Whether a descriptor is a socket that listens."""
    accepts = _ACCEPTS.of(fd)
    return accepts is not None and any(accepts)


def queue(of: Listening) -> Queue | None:
    """The accept queue now; None where it cannot be had."""
    raw = _INFORMS.of(of.fd)
    if raw is None:
        return _unix_queue(of.inode)
    state, length, backlog = _INFO.unpack(raw)
    return Queue(length, backlog) if state == _LISTENING else None


def address(fd: int) -> str:
    """What a socket is bound to: ``host:port``, ``[host]:port`` or a path; empty if unknown."""
    raw, length = ctypes.create_string_buffer(_ADDRESS_BYTES), ctypes.c_uint(_ADDRESS_BYTES)
    if _libc.getsockname(fd, raw, ctypes.byref(length)):
        return ""
    bound = raw.raw
    (family,), (port,) = struct.unpack_from("=H", bound), struct.unpack_from("!H", bound, 2)
    if family == socket.AF_INET:
        return written((socket.inet_ntop(family, bound[4:8]), port))
    if family == socket.AF_INET6:
        return written((socket.inet_ntop(family, bound[8:24]), port))
    return written(bound[2 : length.value]) if family == socket.AF_UNIX else ""


def written(name: tuple[Any, ...] | bytes | str) -> str:
    """An address, as ``getsockname`` returns it, in words. Abstract Unix names begin with @."""
    if isinstance(name, tuple):
        host, port = name[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = name if isinstance(name, str) else name.decode(errors="replace")
    return path.rstrip("\0").replace("\0", "@", 1)


def _numbers() -> int:
    """Up to where descriptors may be open: the size of the table they are in, within reason."""
    with Path("/proc/self/status").open() as status:
        sizes = [int(line.split()[1]) for line in status if line.startswith("FDSize:")]
    return min([*sizes, _MOST_NUMBERS])


def _unix_queue(inode: int) -> Queue | None:
    request = _REQUEST.pack(
        _REQUEST.size, _BY_FAMILY, 1, 0, 0, socket.AF_UNIX, 0, 0, _ANY, inode, _SHOW_QUEUE,
        _ANY, _ANY,
    )  # fmt: skip
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
            kernel.setblocking(False)  # it has answered by the time it has been asked
            kernel.send(request)
            return _answered(kernel.recv(4096))
    except OSError:  # a sandbox without netlink, a kernel without this module
        return None


def _answered(answer: bytes) -> Queue | None:
    """The queue in what the kernel said of a Unix socket."""
    at = _ANSWER_BYTES
    while at + 4 <= len(answer):
        length, kind = struct.unpack_from("=HH", answer, at)
        if kind == _QUEUE and length == 12 and at + length <= len(answer):
            return Queue(*struct.unpack_from("=II", answer, at + 4))
        at += max(4, -(-length // 4) * 4)
    return None
