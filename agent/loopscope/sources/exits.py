"""How workers have ended: their exit status, which the kernel used to tell to their parent only.

Since Linux 6.15 it tells whoever has a pidfd of the process, and goes on doing so after the parent
has been told: ``ioctl(PIDFD_GET_INFO)`` with ``PIDFD_INFO_EXIT`` (include/uapi/linux/pidfd.h). So a
worker that the OOM killer took (SIGKILL), one that crashed in C (SIGSEGV) and one that the server
aborted because it hung (SIGABRT) are told apart. On older kernels and elsewhere nothing is said.
"""

from __future__ import annotations

import fcntl
import os
import signal
import struct
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

from loopscope.core.merge import Family
from loopscope.core.metric import Metric

EXITS = Metric(
    "loopscope_worker_exits_total",
    "counter",
    "Workers whose end was seen from outside, by exit status: a number, or the name of the signal "
    "they died of.",
    ("status",),
)

METRICS = (EXITS,)

_INFO = struct.Struct("=Q 52x i")
"""The first version of ``struct pidfd_info``, of 64 bytes: what is in it, and the exit status."""
_EXIT = 1 << 3
"""``PIDFD_INFO_EXIT``: asks for the exit status, and says that it is there."""
_GET_INFO = 3 << 30 | _INFO.size << 16 | 0xFF << 8 | 11
"""``PIDFD_GET_INFO``. Where it is another number, it is one that no pidfd knows."""
_MOST = 4096
"""Processes followed: each takes a file descriptor."""


class Exits:
    """Follows workers by their process ids. One thread; ``close`` in the end."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Ends by exit status."""
        self._files: dict[int, int] = {}

    def follow(self, pids: Iterable[int]) -> None:
        """See who of those followed so far has ended, and follow ``pids`` as well. Raises nothing.

        Has to be called while they are alive: of a process that has been waited for nobody is told.
        """
        self._settle()
        for pid in pids:
            if pid not in self._files and len(self._files) < _MOST:
                with suppress(OSError, AttributeError):  # it has ended, or there are no pidfds
                    file = os.pidfd_open(pid)
                    if _can_tell(file):
                        self._files[pid] = file
                    else:
                        os.close(file)

    def families(self) -> list[Family]:
        """How many have ended, by status, as of the latest ``follow``; nothing where none has."""
        family = Family(EXITS, EXITS.labels)
        for status, count in self.counts.items():
            family.put((status,), [float(count)])
        return [family] if family.rows else []

    def close(self) -> None:
        """Follow nobody any more."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()

    def _settle(self) -> None:
        for pid, file in list(self._files.items()):
            try:
                status = _status(file)
            except OSError:  # it has ended, and this kernel says no more than that
                os.close(self._files.pop(pid))
                continue
            if status is not None:
                self.counts[status] += 1
                os.close(self._files.pop(pid))


def _status(file: int) -> str | None:
    """How the process has ended; None as long as it has not, or its parent does not know yet.

    Raises ``OSError`` where it has ended and the kernel does not tell how.
    """
    known, status = _info(file)
    if not known & _EXIT:
        return None
    code = os.waitstatus_to_exitcode(status)
    if code >= 0:
        return str(code)
    try:
        return signal.Signals(-code).name
    except ValueError:  # of the real-time signals only the first and the last have names
        return f"signal {-code}"


def _can_tell(file: int) -> bool:
    """Whether this kernel knows the question, which it does from 6.13 on."""
    try:
        _info(file)
    except OSError:
        return False
    return True


def _info(file: int) -> tuple[int, int]:
    """What is known of a process, as flags, and its wait status. Raises ``OSError``."""
    buffer = bytearray(_INFO.size)
    _INFO.pack_into(buffer, 0, _EXIT, 0)
    fcntl.ioctl(file, _GET_INFO, buffer)
    known, status = _INFO.unpack(buffer)
    return known, status
