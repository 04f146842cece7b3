"""How often one place may speak in the log: lines are limited, never counts."""

from __future__ import annotations

from collections.abc import Callable

from loopscope.core.budget import OVERFLOW

_LINES = 3
_PERIOD = 60.0
_MOST_PLACES = 100


class Limiter:
    """Allows ``_LINES`` lines per place and ``_PERIOD`` seconds; ``now`` is monotonic."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._places: dict[str, _Place] = {}
        self.suppressed = 0
        """Lines left out so far."""

    def ask(self, name: str) -> int | None:
        """How many lines of this place were left out since its last; None: leave this out too."""
        place = self._place(name)
        now = self._now()
        if now - place.began >= _PERIOD:
            place.began, place.lines = now, 0
        place.lines += 1
        if place.lines > _LINES:
            place.silent += 1
            self.suppressed += 1
            return None
        silent, place.silent = place.silent, 0
        return silent

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


def unsaid(silent: int) -> str:
    """What to add to a line for those that were left out before it."""
    return f" ({silent} more like this were not logged)" if silent else ""
