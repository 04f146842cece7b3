"""When an event loop is closed: its thread may run another one later, which is a stranger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

_CLOSE = "close"


def when_closed(loop: asyncio.AbstractEventLoop, tell: Callable[[], None]) -> Callable[[], None]:
    """Call ``tell``, which must not raise, when ``loop`` is about to be closed.

    What is returned takes that back. Raises TypeError for a loop without room for attributes.
    """
    attributes = vars(loop)
    before = attributes.get(_CLOSE)
    close = loop.close

    def closing() -> None:
        tell()
        close()

    def undo() -> None:
        if attributes.get(_CLOSE) is closing:
            if before is None:
                del attributes[_CLOSE]
            else:
                attributes[_CLOSE] = before

    attributes[_CLOSE] = closing
    return undo
