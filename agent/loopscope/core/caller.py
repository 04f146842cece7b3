"""Which line of the user's code calls, for what is asked too often to take a stack each time.

To walk out of a library frame by frame takes a microsecond or two, most of it for Python to make
the frame objects. Whoever called once will call again, from as far away: so what is looked at first
is the frame that was the user's last time, if the library's function inside it is the same as then.
"""

from __future__ import annotations

import sys
from types import CodeType, FrameType

from loopscope.core.stacks import Place, UserCode

_frame = sys._getframe  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class Caller:
    """Finds the user's line that leads to one place in a library. Any thread."""

    __slots__ = ("_known", "_users")

    def __init__(self, users: UserCode) -> None:
        self._users = users
        self._known: tuple[int, CodeType | None, CodeType | None] = (1, None, None)
        """How many calls out the user's frame was, the code it had called, and its own."""

    def find(self) -> Place | None:
        """The innermost of the user's frames that have led here, if one has: `UserCode.caller`."""
        depth, called, users = self._known
        if called is not None:
            try:
                frame = _frame(depth)
            except ValueError:  # nobody is that far away
                pass
            else:
                code = frame.f_code
                if _frame(depth - 1).f_code is called and (code is users or self._users.owns(code)):
                    return code, frame.f_lasti
        here = _frame(1)
        place = self._users.caller(here)
        if place is not None:
            self._known = _way(here, place[0])
        return place


def _way(frame: FrameType | None, to: CodeType) -> tuple[int, CodeType | None, CodeType | None]:
    """How many calls out of its caller ``to`` is, the code it has called, which may be None; it."""
    depth, called = 1, None
    while frame is not None and frame.f_code is not to:
        depth, called = depth + 1, frame.f_code
        frame = frame.f_back
    return depth, None if frame is None else called, to
