"""What libuv knows of a uvloop: when the loop last came back from polling.

uvloop runs no Python of its own that could be wrapped, but it brings libuv along and exports it.
libuv notes the time whenever a poll returns, before any callback runs, and everybody may ask for
that note (``uv_now``, which only reads a number). So a loop that is held says since when it has
been, to the millisecond, at no cost to itself. ``loop.time()`` would not do: it takes a new note.

Setting a timer takes one as well (``call_later``), so what is read amid many callbacks may be later
than the poll was: a hold is never made longer by this than it is.
"""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import time
from collections.abc import Callable
from typing import Any

_HALF_A_TICK = 0.0005
"""The note is in whole milliseconds, rounded down."""
_PLAUSIBLE = 1.0
"""Seconds by which a note just taken may be off: beyond, it is of another clock than ours."""


def last_poll(loop: asyncio.AbstractEventLoop) -> Callable[[], float] | None:
    """What reads when ``loop`` last returned from polling, on ``time.perf_counter``'s scale.

    Any thread may call what is returned, as long as it holds on to the loop meanwhile. None where
    the loop is not uvloop's, or its libuv is out of reach.
    """
    if not type(loop).__module__.startswith("uvloop"):
        return None
    try:
        module: Any = importlib.import_module("uvloop.loop")
        uv_now: Any = ctypes.PyDLL(module.__file__).uv_now  # keeps the GIL: it takes no time
        address = _address(module.libuv_get_loop_t_ptr(loop))
    except (ImportError, AttributeError, OSError, ValueError):
        return None
    uv_now.argtypes, uv_now.restype = (ctypes.c_void_p,), ctypes.c_uint64
    loop.time()  # takes a note
    offset = time.perf_counter() - time.monotonic() + _HALF_A_TICK

    def read() -> float:
        noted: int = uv_now(address)
        return noted / 1e3 + offset

    return read if abs(time.perf_counter() - read()) < _PLAUSIBLE else None


def _address(capsule: object) -> int:
    """The pointer in a capsule without a name."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    address: int | None = get(capsule, None)
    if not address:
        raise ValueError("the capsule is empty")
    return address
