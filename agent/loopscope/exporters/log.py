"""One line in the log per stall, as text for people and as a mapping for machines.

A service that stalls does so again and again, often in the same place. So each place may speak a
few times a minute, and says afterwards how often it was silent. Only lines are limited, never
counts: the metrics have every stall.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from loopscope.core.stall import Stall, as_json
from loopscope.exporters.limiter import Limiter, unsaid

logger = logging.getLogger("loopscope")


class StallLog:
    """Writes a few lines per place and minute; ``now`` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._limiter = Limiter(now)

    @property
    def suppressed(self) -> int:
        """Lines left out so far."""
        return self._limiter.suppressed

    def write(self, stall: Stall) -> None:
        """Log ``stall``, unless its place has said enough for now."""
        silent = self._limiter.ask(stall.label or stall.leaf)
        if silent is not None:
            logger.warning("%s", sentence(stall, silent), extra={"loopscope_stall": as_json(stall)})


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
    return text + unsaid(silent)
