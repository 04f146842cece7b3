"""The series budget: label sets cost memory in every process that reads them, so they are bounded.

Within the budget every label set gets its own series. Beyond it, everything new is folded into one
overflow series, and how often that happened is counted: totals stay right, detail is lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from loopscope.core.page import PageFullError

K = TypeVar("K")
V = TypeVar("V")

OVERFLOW = "_OVERFLOW"
"""The label value of everything that was folded."""


class Budget(Generic[K, V]):
    """A dictionary that makes its own values and stops growing at ``limit`` of them.

    ``make(key)`` builds a value; ``overflow()`` builds, once, the value everything beyond the limit
    shares. Either may return None, or raise ``PageFullError``, where there is no room: no value is
    made then, and the next look-up tries again. On the hot path look up with
    ``known.get(key)`` and fall back to ``admit(key)``.
    """

    def __init__(
        self, limit: int, make: Callable[[K], V | None], overflow: Callable[[], V | None]
    ) -> None:
        self.known: dict[K, V] = {}
        self.folded = 0
        """How many look-ups did not get a value of their own."""
        self._limit = limit
        self._make = make
        self._overflow = overflow
        self._overflow_value: V | None = None

    def forget(self) -> None:
        """Lose every value: each has to be made anew, if that is still possible."""
        self.known.clear()
        self._overflow_value = None

    def admit(self, key: K) -> V | None:
        """The value of ``key``: known, new, or, once the budget is spent, the overflow value.

        None where there is no room even for that.
        """
        value = self.known.get(key)
        if value is None and len(self.known) < self._limit:
            value = _made(lambda: self._make(key))
            if value is not None:
                self.known[key] = value
        if value is not None:
            return value
        self.folded += 1
        if self._overflow_value is None:
            self._overflow_value = _made(self._overflow)
        return self._overflow_value


def _made(make: Callable[[], V | None]) -> V | None:
    try:
        return make()
    except PageFullError:
        return None
