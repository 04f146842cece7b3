"""What the watchdog knows of a loop that may be stalling: who runs on it, and samples of that."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from loopscope.core.stacks import Stack
from loopscope.sources.cause import Oversleep
from loopscope.sources.evidence import Moment
from loopscope.sources.loop import Interval, LoopMonitor

_MOST_SAMPLES = 100
"""Samples of one stall."""
_GROWTH = 1.3
"""Each pause between two samples, to the one before: an hour costs no more than a minute."""
_LONGEST_PAUSE = 0.25
"""Seconds between two samples, at most."""
_FIRST_WORD = 0.25
"""Seconds after which a stall is spoken of although it is not over."""
_WORDS_GROWTH = 4.0
"""Each such time, to the one before."""


class Running(NamedTuple):
    """Whose step a loop is running."""

    key: Hashable
    since: float
    """When the step began; 0.0 if that is not known."""
    route: str = ""
    method: str = ""
    task: str = ""
    trace_id: str = ""


class Waiting(Protocol):
    """A request in flight: when its latest step began, and when the one before that ended."""

    step_started: float
    suspended: float


class Watched(Protocol):
    """One event loop and what runs on it."""

    @property
    def monitor(self) -> LoopMonitor: ...

    def running(self) -> Running | None:
        """What is being run, as far as that is known."""

    def waiting(self) -> Sequence[Waiting]:
        """The requests in flight that are not being run."""
        ...

    def label_of(self, waiting: Waiting) -> tuple[str, str]:
        """Route and method of a request in flight."""
        ...


@dataclass(slots=True)
class Look:
    """One sample of the loop's thread."""

    at: float
    stack: Stack
    signature: Hashable
    running: Running | None
    moment: Moment
    waits: str | None
    late: Oversleep = Oversleep(0.0)
    """How late it was taken, and for want of what."""


@dataclass(slots=True)
class Suspicion:
    """A loop that has been held since ``since``, and what was seen of that."""

    since: float
    before: Moment
    threads: dict[int, float]
    """CPU seconds other threads had used by then, by native id."""
    waiting: list[tuple[Waiting, float]]
    """The requests in flight, each with when it had gone to sleep."""
    pause: float
    """Seconds until the next sample."""
    id: str
    looks: list[Look] = field(default_factory=list[Look])
    next_look: float = 0.0
    next_word: float = _FIRST_WORD

    def is_about(self, held: Interval, monitor: LoopMonitor) -> bool:
        """Whether this is what the loop later said of itself."""
        off = abs(self.since - held[0])
        return off <= min(monitor.interval, monitor.threshold) and self.since < held[1]

    def is_due(self, now: float) -> bool:
        """Whether another sample should be taken."""
        return now >= self.next_look and len(self.looks) < _MOST_SAMPLES

    def is_time_to_tell(self, now: float) -> bool:
        """Whether this has lasted for long enough to be spoken of, once more."""
        if now - self.since < self.next_word or not self.looks:
            return False
        while self.next_word <= now - self.since:
            self.next_word *= _WORDS_GROWTH
        return True

    def add(self, look: Look) -> None:
        """Keep a sample; the next one comes a little later each time."""
        self.looks.append(look)
        self.next_look = look.at + self.pause
        self.pause = min(self.pause * _GROWTH, _LONGEST_PAUSE)


class Wake(NamedTuple):
    """What all threads were doing when the watchdog came back late."""

    at: float
    used: dict[int, float]
    """CPU seconds since the last look at all threads, a second or two before, by native id."""
    threads: dict[int, tuple[str, Stack]]
    """Name and stack, by native id."""
