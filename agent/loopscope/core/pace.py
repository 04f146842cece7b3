"""How often something may be done if it is to take no more than a share of one core."""

from __future__ import annotations


class Pace:
    """Puts off something that takes long: it may take ``share`` of one core, over time."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._not_before = float("-inf")

    def is_due(self, now: float) -> bool:
        """Whether it may be done again, at the moment ``now``."""
        return now >= self._not_before

    def took(self, now: float, seconds: float) -> None:
        """It has been done, at the moment ``now``, in so many seconds of CPU time."""
        self._not_before = now + seconds / self._share
