"""How long a request waited before it came here: the ``X-Request-Start`` header of a proxy.

Written as seconds, milliseconds or microseconds since 1970, with or without ``t=`` in front,
depending on the proxy. Anybody can send it and clocks differ, so what cannot be true is ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

HEADER = b"x-request-start"
LONGEST = 3600.0
"""Seconds; a request that claims to have waited longer is not believed."""

_YEAR_2001 = 1e9


def seconds_queued(scope: Any, wall: Callable[[], float] = time.time) -> float | None:
    """Seconds since the moment in ``scope``'s header; None where there is none to believe."""
    for name, value in scope["headers"]:
        if name == HEADER:
            started = parse(value)
            if started is None:
                return None
            waited = wall() - started
            # A clock ahead of ours makes small negative waits: that is no wait, not a mistake.
            return max(0.0, waited) if -LONGEST <= waited <= LONGEST else None
    return None


def parse(value: bytes) -> float | None:
    """Unix seconds in a header value, whatever its unit; None if it is no number."""
    try:
        number = float(value.removeprefix(b"t=").decode("ascii"))
    except ValueError:
        return None
    for unit in (1.0, 1e3, 1e6):
        if _YEAR_2001 <= number / unit < 10 * _YEAR_2001:
            return number / unit
    return None
