"""Which processes the kernel lets look into this one.

Where Yama's ``kernel.yama.ptrace_scope`` is 1, as on Debian and Ubuntu, a process may be looked
into by its ancestors only, even by its own user; unless it says who else may. Whoever it names may,
and all of that one's descendants: so naming itself admits its own children, and naming its parent
admits its siblings too.
"""

from __future__ import annotations

import ctypes
import sys

_PR_SET_PTRACER = 0x59616D61
_ANY = ctypes.c_ulong(-1).value


def allow_others_to_trace(pid: int | None) -> bool:
    """Let process ``pid`` and its descendants look into this one, or every one of this user's.

    It takes the place of whom was named before. Whether the kernel has taken note of it: one that
    has no Yama has not, and needs none; nor has it if there is no such process.
    """
    if sys.platform != "linux":
        return False
    who = _ANY if pid is None else pid
    prctl = ctypes.CDLL(None).prctl
    prctl.argtypes = (ctypes.c_int, *(ctypes.c_ulong,) * 4)
    return bool(prctl(_PR_SET_PTRACER, who, 0, 0, 0) == 0)
