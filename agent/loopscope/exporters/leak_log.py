"""One line in the log per leak, as text for people and as a mapping for machines."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict

from loopscope.core.leak import Leak
from loopscope.exporters.limiter import Limiter, unsaid

logger = logging.getLogger("loopscope")


class LeakLog:
    """Writes a few lines per place and minute; ``now`` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._limiter = Limiter(now)

    def write(self, leak: Leak) -> None:
        """Log ``leak``, unless its place has said enough for now."""
        silent = self._limiter.ask(f"{leak.pool} {leak.site}")
        if silent is not None:
            text = sentence(leak) + unsaid(silent)
            logger.warning("%s", text, extra={"loopscope_leak": asdict(leak)})


def sentence(leak: Leak) -> str:
    """What has been found, in one line."""
    who = f" by {leak.route}" if leak.route else ""
    where = f" at {leak.site}" if leak.site else ""
    why = (
        "though that request has ended"
        if leak.reason == "request_ended"
        else f"after {leak.held_s:.0f} s"
    )
    return f"pool {leak.pool} ({leak.kind}): taken{who}{where} and not given back {why}"
