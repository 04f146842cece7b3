"""One line in the log per stall, as text for people and as a mapping for machines.

A service that stalls does so again and again, often in the same place. So each place may speak a
few times a minute, and says afterwards how often it was silent. Only lines are limited, never
counts: the metrics have every stall.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from loopscope.core.budget import OVERFLOW
from loopscope.core.stall import Stall, as_json

logger = logging.getLogger("loopscope")

_LINES = 3
_PERIOD = 60.0
_MOST_PLACES = 100


class StallLog:
    """Writes at most ``_LINES`` lines per place and ``_PERIOD`` seconds; ``now`` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._places: dict[str, _Place] = {}
        self.suppressed = 0
        """Lines left out so far."""

    def write(self, stall: Stall) -> None:
        """Log ``stall``, unless its place has said enough for now."""
        place = self._place(stall.label or stall.leaf)
        now = self._now()
        if now - place.began >= _PERIOD:
            place.began, place.lines = now, 0
        place.lines += 1
        if place.lines > _LINES:
            place.silent += 1
            self.suppressed += 1
            return
        silent, place.silent = place.silent, 0
        logger.warning("%s", sentence(stall, silent), extra={"loopscope_stall": as_json(stall)})

    def _place(self, name: str) -> _Place:
        if name not in self._places and len(self._places) >= _MOST_PLACES:
            name = OVERFLOW
        return self._places.setdefault(name, _Place(self._now()))


class _Place:
    __slots__ = ("began", "lines", "silent")

    def __init__(self, began: float) -> None:
        self.began = began
        self.lines = 0
        self.silent = 0


_WHY = {
    "blocking_call": "a blocking call",
    "cpu": "computing",
    "lock": "waiting for a lock",
    "gc": "garbage collection",
    "import": "importing modules",
    "gil_contention": "another thread held the interpreter",
    "saturation": "many callbacks, none of them long",
    "starved": "the process was not given a CPU",
    "suspended": "the process was stopped",
    "unknown": "the cause is not known",
}


def sentence(stall: Stall, silent: int = 0) -> str:
    """What happened, in one line."""
    parts = [f"event loop held for {stall.duration_s * 1000:.0f} ms: {_WHY[stall.cause]}"]
    if stall.location:
        parts.append(f"at {stall.location}")
    if stall.route:
        parts.append(f"in {stall.method} {stall.route}".replace("in  ", "in "))
    elif stall.task:
        parts.append(f"in task {stall.task}")
    requests = sum(requests for requests, _ in stall.victims.values())
    text = " ".join(parts)
    if requests:
        who = "1 request" if requests == 1 else f"{requests} requests"
        text += f"; {who} waited, {stall.lost:.2f} s in all"
    if silent:
        text += f" ({silent} more like this were not logged)"
    return text
