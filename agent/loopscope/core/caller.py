"""Which line of the user's code calls, for what is asked too often to take a stack each time.

To walk out of a library frame by frame takes a microsecond or two, most of it for Python to make
the frame objects. Whoever called once will call again, from as far away: so what is looked at first
is the frame that was the user's last time, if the library's function inside it is the same as then.

Where a library runs in a greenlet of its own, as SQLAlchemy's asyncio does, the user's frame is in
the one that waits for it. That is gone to straight if this one is as deep as last time, and was
started with the same function of the library's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any, NamedTuple

from loopscope.core.stacks import Place, UserCode, driver_of

_frame = sys._getframe  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


_Way = tuple[int, CodeType | None, CodeType | None]
"""How many calls out the user's frame was, the code it had called, and its own."""

_NO_WAY: _Way = (1, None, None)


class _Beyond(NamedTuple):
    """The way to a user's frame beyond a greenlet."""

    present: Callable[[], Any]
    """Says which greenlet this is."""
    deep: int
    """How many calls out the greenlet's outermost frame was."""
    started_with: CodeType
    """The code of that."""
    drives: CodeType
    """The code that waits for the greenlet: a coroutine's, so it is not looked at any closer."""
    way: _Way
    """From there to the user's frame."""


class Caller:
    """Finds the user's line that leads to one place in a library. Any thread."""

    __slots__ = ("_beyond", "_known", "_users")

    def __init__(self, users: UserCode) -> None:
        self._users = users
        self._known = _NO_WAY
        self._beyond: _Beyond | None = None

    def find(self) -> Place | None:
        """The innermost of the user's frames that have led here, if one has: `UserCode.caller`."""
        depth, called, users = self._known
        if called is not None:
            try:
                inside = _frame(depth - 1)
            except ValueError:  # nobody is that far away
                pass
            else:
                frame = inside.f_back
                if inside.f_code is called and frame is not None:
                    code = frame.f_code
                    if code is users or self._users.owns(code):
                        return code, frame.f_lasti
        if self._beyond is not None:
            place = self._look_beyond(self._beyond)
            if place is not None:
                return place
        here = _frame(1)
        place = self._users.caller(here)
        if place is not None:
            self._remember(here, place[0])
        return place

    def _look_beyond(self, beyond: _Beyond) -> Place | None:
        """Where the user's code waits for this greenlet, if all is as it was last time."""
        present, deep, started_with, drives, (depth, called, users) = beyond
        try:
            outermost = _frame(deep + 1)
        except ValueError:
            return None
        if outermost.f_code is not started_with or outermost.f_back is not None:
            return None
        driver = present().parent
        inside: FrameType | None = None if driver is None else driver.gr_frame
        if inside is None or inside.f_code is not drives:
            return None
        while depth > 2 and inside is not None:
            inside = inside.f_back
            depth -= 1
        frame = None if inside is None or inside.f_code is not called else inside.f_back
        if frame is None:
            return None
        code = frame.f_code
        return (code, frame.f_lasti) if code is users or self._users.owns(code) else None

    def _remember(self, here: FrameType, users: CodeType) -> None:
        known = _way(here, users)
        driver = driver_of() if known is _NO_WAY else None
        if driver is None:
            self._known = known
            return
        way = _way(driver.gr_frame, users)
        if way[1] is not None:
            present = sys.modules["greenlet"].getcurrent
            self._beyond = _Beyond(present, *_bottom(here), driver.gr_frame.f_code, way)


def _way(frame: FrameType | None, to: CodeType) -> _Way:
    """How many calls out of its caller ``to`` is, the code it has called, which may be None; it."""
    depth, called = 1, None
    while frame is not None and frame.f_code is not to:
        depth, called = depth + 1, frame.f_code
        frame = frame.f_back
    return _NO_WAY if frame is None else (depth, called, to)


def _bottom(frame: FrameType) -> tuple[int, CodeType]:
    """How many calls out of its caller the outermost frame is, and its code."""
    depth = 1
    while frame.f_back is not None:
        depth, frame = depth + 1, frame.f_back
    return depth, frame.f_code
