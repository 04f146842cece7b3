"""How a child process learns that its parent has gone: its standard input ends.

The parent holds the other end of the pipe and never writes to it. Closing it is how a child is
asked to stop; being killed closes it too, so nothing is left running whatever happens to the
parent, on any system with pipes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable


def wait_until_gone() -> None:
    """Block until the parent closes our standard input or ends."""
    while os.read(sys.stdin.fileno(), 4096):
        pass


def when_gone(act: Callable[[], None]) -> None:
    """Call ``act`` from another thread as soon as the parent is gone."""

    def watch() -> None:
        wait_until_gone()
        act()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
