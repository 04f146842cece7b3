"""Which of asyncio's futures somebody waits for who does not say so."""

from __future__ import annotations

import gc
from asyncio import Future as AsyncioFuture
from concurrent.futures import Future
from typing import Any, cast


def future_of(*holders: object) -> object:
    """The first of asyncio's futures that one of ``holders`` directly refers to; else None.

    What keeps it to itself, as iterators and closures do, still tells the garbage collector.
    """
    held: object
    for held in gc.get_referents(*holders):
        if isinstance(held, AsyncioFuture):
            return cast("object", held)
    return None


def stand_in(future: Future[Any]) -> object:
    """What ``asyncio.wrap_future`` made of ``future``; None if it was not asked to.

    It leaves the executor's future a function to call when it is done, and that function knows.
    """
    callbacks: list[Any] = getattr(future, "_done_callbacks", [])
    for callback in reversed(callbacks):  # the first of them is ours
        closure = getattr(callback, "__closure__", None)
        found = None if closure is None else future_of(*closure)
        if found is not None:
            return found
    return None
