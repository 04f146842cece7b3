"""One clock for every duration, anchored once to wall time.

Durations come from ``time.perf_counter``: monotonic, system-wide on Linux (it reads
``CLOCK_MONOTONIC``, so two processes can compare readings), and never set back by NTP. Wall time is
only ever a label, so it is derived from one anchor taken at start-up instead of being read again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Clock:
    """A monotonic clock and the wall time at which it was anchored.

    ``now`` is an attribute, not a method, so that the hot path can bind the C function itself.
    """

    now: Callable[[], float] = time.perf_counter
    """Monotonic seconds since an arbitrary moment."""
    anchor_monotonic: float = field(default_factory=time.perf_counter)
    anchor_wall: float = field(default_factory=time.time)

    def wall(self, moment: float) -> float:
        """Unix seconds at ``moment``, a reading of ``now``."""
        return self.anchor_wall + (moment - self.anchor_monotonic)


class FakeTime:
    """Time that moves only when it is pushed, for tests.

    ``Clock(now=fake.now, anchor_monotonic=0.0, anchor_wall=…)`` makes a clock of it.
    """

    def __init__(self, start: float = 0.0) -> None:
        self._moment = start

    def now(self) -> float:
        """The current moment, in seconds."""
        return self._moment

    def advance(self, seconds: float) -> None:
        """Push time forward; a monotonic clock never goes back, so neither does this one."""
        if seconds < 0:
            raise ValueError(f"a monotonic clock cannot go back by {-seconds} s")
        self._moment += seconds

    def clock(self, wall: float = 0.0) -> Clock:
        """A ``Clock`` on this time, anchored at ``wall`` Unix seconds now."""
        return Clock(now=self.now, anchor_monotonic=self._moment, anchor_wall=wall)
