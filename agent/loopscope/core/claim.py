"""Whether a page is that of the process whose number it bears.

Who looks into processes must not take a file's word for which: a page can be garbage, its process
can have another number here (another container's worker, in a shared directory), and one who may
write to a page that is no longer privileged could have one who is look into anybody. So a process
has to have the page locked, by a lock that it has taken itself: one that was inherited along with
an open file bears the number of whoever did. Linux tells (``/proc/PID/fdinfo``); elsewhere there is
nothing to go by but the page.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from enum import Enum
from pathlib import Path

_PROC = Path("/proc")
_MOST = 2**31 - 1
"""No process has a higher number."""


class Claim(Enum):
    """What there is to a page's saying that it is a process' own."""

    TRUE = "true"
    FALSE = "false"
    HIDDEN = "hidden"
    """The kernel does not say, to us; it is a process of the page's user at least."""


def judged(pid: int, page: int) -> Claim:
    """What there is to the claim that process ``pid`` writes the open file ``page``."""
    if not 0 < pid <= _MOST:
        return Claim.FALSE
    if sys.platform != "linux":
        return Claim.HIDDEN
    try:
        return Claim.TRUE if _has_locked(pid, os.fstat(page)) else Claim.FALSE
    except PermissionError:
        is_the_users = _user(pid) == os.fstat(page).st_uid
        return Claim.HIDDEN if is_the_users else Claim.FALSE
    except OSError:  # it has ended
        return Claim.FALSE


def _has_locked(pid: int, page: os.stat_result) -> bool:
    """Whether ``pid`` has a file open that is ``page``, and has locked it. Raises ``OSError``."""
    with os.scandir(_PROC / str(pid) / "fd") as files:
        return any(
            _is_same(file, page) and _is_locked_by(pid, _PROC / str(pid) / "fdinfo" / file.name)
            for file in files
        )


def _is_same(file: os.DirEntry[str], page: os.stat_result) -> bool:
    with suppress(OSError):  # it has been closed meanwhile
        return os.path.samestat(file.stat(), page)
    return False


def _is_locked_by(pid: int, info: Path) -> bool:
    """Whether one of a file's locks, each a line, is for writing and was taken by ``pid``."""
    with suppress(OSError):
        lines = (line.split() for line in info.read_text(errors="replace").splitlines())
        locks = (words for words in lines if words[:1] == ["lock:"])
        return any(words[2:6] == ["FLOCK", "ADVISORY", "WRITE", str(pid)] for words in locks)
    return False


def _user(pid: int) -> int | None:
    """Whose process it is: the effective user. Its files' owner would not do for that."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "status").read_text(errors="replace").splitlines():
            if line.startswith("Uid:"):
                return int(line.split()[2])
    return None
