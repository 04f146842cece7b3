"""A loop that does not come round, as long as that lasts: what was seen of it, and its record."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from loopscope.core.clock import Clock
from loopscope.core.stall import Stall
from loopscope.sentinel.heartbeats import Heart
from loopscope.sentinel.view import Books, Schedule, View

LOOKS = (0.03, 0.25, 1.0, 3.0, 10.0)
"""Seconds after which a beat that is due and does not come is a reason to look, again and again."""
EVERY = 30.0
"""And from then on."""
_MOST_VIEWS = 100


@dataclass(slots=True)
class Hang:
    """One loop of one worker whose beat was ``due`` and has not come. Moments are the clock's."""

    heart: Heart
    loop: str
    thread: int
    due: float
    id: str
    noticed: float
    before: Schedule | None
    """What the kernel said of the thread when this was noticed."""
    views: list[View] = field(default_factory=list[View])
    tried: int = 0
    """Looks taken, whatever came of them."""
    refused: str = ""
    """Why the kernel does not let us look."""
    native: str = ""
    """The innermost function of C code that was seen."""
    has_been_noted: bool = False
    has_been_said: bool = False

    def is_time_to_look(self, now: float) -> bool:
        """Whether the next look is due."""
        return now - self.due >= self._next_look()

    def _next_look(self) -> float:
        if self.tried < len(LOOKS):
            return LOOKS[self.tried]
        return LOOKS[-1] + EVERY * (self.tried - len(LOOKS) + 1)

    def add(self, view: View) -> None:
        """Keep what was seen; of a hang that goes on for days, the latest."""
        self.views.append(view)
        del self.views[:-_MOST_VIEWS]

    def beats(self) -> bool:
        """Whether the beat has come since, or is not waited for any more. Raises ``OSError``."""
        return self.heart.due(self.loop) != self.due

    def books(self, after: Schedule | None, now: float) -> Books:
        """What the kernel knows of the thread since this was noticed."""
        return Books.between(self.before, after, now - self.noticed)

    def view(self) -> View:
        """Of the looks that see the cause as the latest does, for it knows most: what most saw.

        One that saw no cause knows nothing.
        """
        if not self.views:
            return View("unknown")
        informed = [view for view in self.views if view.cause != "unknown"] or self.views
        agreed = [view for view in informed if view.cause == informed[-1].cause]
        places = Counter((view.location, view.thread_location) for view in agreed)
        most, _ = places.most_common(1)[0]
        return next(v for v in reversed(agreed) if (v.location, v.thread_location) == most)

    def record(self, clock: Clock, until: float, *, in_progress: bool) -> Stall:
        """The hang as a stall. It began at the last beat or later, so it is no longer than said."""
        view = self.view()
        evidence: dict[str, float | int | str] = {}
        if view.thread:
            evidence |= {"thread": view.native_id, "thread_name": view.thread}
            evidence["thread_location"] = view.thread_location
        if self.refused:
            evidence["refused"] = self.refused
        if self.native:
            evidence["native"] = self.native
        each = (until - self.due) / max(1, len(self.views))
        stacks: dict[tuple[str, ...], float] = {}
        for seen in self.views:
            stacks[seen.frames] = stacks.get(seen.frames, 0.0) + each
        return Stall(
            self.id,
            clock.wall(self.due),
            until - self.due,
            cause=view.cause,
            location=view.location,
            label=view.label,
            leaf=view.leaf,
            route=view.route,
            worker=str(self.heart.pid),
            in_progress=in_progress,
            is_estimate=True,
            stacks=tuple(stacks.items()),
            evidence=evidence,
            outside=view.as_json(len(self.views)),
        )
