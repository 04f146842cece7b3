"""What is known of something that was taken from a pool and not given back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["request_ended", "held_too_long"]
"""Why it counts as a leak: whose it was is over, or it takes longer than a setting allows."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing, as of the moment it began to count as a leak."""

    pool: str
    kind: str
    reason: Reason
    site: str
    """The line that took it, ``app/report.py:41 build``; "" where it is not the user's."""
    route: str
    """Of the request that took it; "" outside of requests."""
    held_s: float
    """For how many seconds it has been held."""
