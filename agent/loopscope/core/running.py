"""The event loop that runs here, where one may or may not."""

from __future__ import annotations

import asyncio


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The calling thread's running loop; None without one, or under one that is not asyncio's."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
