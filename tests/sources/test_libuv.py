"""What libuv says of a uvloop that polls, and of one that is held."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from loopscope.sources.libuv import last_poll

pytestmark = pytest.mark.anyio

TICK = 0.002
"""Two of libuv's, which counts whole milliseconds."""


def is_uvloop() -> bool:
    return type(asyncio.get_running_loop()).__module__.startswith("uvloop")


async def test_only_a_uvloop_can_be_asked() -> None:
    """A loop that has no libuv says nothing."""
    assert (last_poll(asyncio.get_running_loop()) is not None) == is_uvloop()


@pytest.mark.real_time
async def test_a_held_loop_says_since_when() -> None:
    """Seen from another thread, the last poll is when the hold began, however long it lasts."""
    read = last_poll(asyncio.get_running_loop())
    if read is None:
        pytest.skip("no libuv")
    seen: list[float] = []
    before = time.perf_counter()
    await asyncio.sleep(0.05)
    began = time.perf_counter()

    def look() -> None:
        time.sleep(0.05)
        seen.append(read())

    other = threading.Thread(target=look)
    other.start()
    time.sleep(0.1)  # noqa: ASYNC251  # what it is about
    other.join()
    assert before + 0.05 - TICK <= seen[0] <= began + TICK
    await asyncio.sleep(0)
    await asyncio.sleep(0.001)
    assert read() > began + 0.09
