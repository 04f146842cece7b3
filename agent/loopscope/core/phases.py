"""The phases of a request, and how the time in which it did not run is shared out among them.

Whatever a request has under way (a connection it waits for, jobs in threads) enters and leaves
phases, in any number at once. A moment belongs to one phase only, the first in the order below that
anything is in; where nothing is known of a moment, it is ``await_other``. So the phases of a
request add up to its duration, whatever overlaps.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

LOOP_RUN: Final = "loop_run"
AWAIT_OTHER: Final = "await_other"
AFTERWARDS: Final = "background"
"""What comes after the last body byte, and so is no part of the duration."""

PHASES: Final = (
    "loop_wait",
    "pool_wait",
    "thread_wait",
    "thread_run",
    "client_upload",
    "client_download",
)
"""What a gap between two steps can be other than ``await_other``; what comes first has it."""

LOOP_WAIT, POOL_WAIT, THREAD_WAIT, THREAD_RUN, CLIENT_UPLOAD, CLIENT_DOWNLOAD = range(len(PHASES))
NOWHERE: Final = len(PHASES)
"""In no phase: not begun, or over."""

MOST_CHANGES: Final = 16_384
"""Changes of phase kept between two steps of a request."""


class UnderWay(Protocol):
    """Something that a request has under way."""

    awaited: object
    """What whoever waits for its end has yielded, if that is known: once it is over, such a request
    waits for nothing but the loop."""


class Stay:
    """One thing that a request has under way, in one phase after another. For any one thread."""

    __slots__ = ("_gaps", "awaited", "phase")

    awaited: object

    def __init__(self, gaps: Gaps, phase: int = NOWHERE) -> None:
        self._gaps = gaps
        self.phase = phase
        """Where it is; for what has been there before, and was counted then, not ``NOWHERE``."""
        self.awaited = None

    def move(self, phase: int, at: float) -> None:
        """Leave the present phase and enter ``phase`` (``NOWHERE``: it is over) at that moment.

        Beyond ``MOST_CHANGES`` nothing new is begun; what has begun has to find its end.
        """
        changes = self._gaps.changes
        left = self.phase
        if left != NOWHERE or len(changes) < MOST_CHANGES:
            self.phase = phase
            changes.append((at, left, phase, self))


class Gaps:
    """Seconds by phase between the steps of one request; see ``close``."""

    __slots__ = ("changes", "estimated", "inside", "seconds", "under_way")

    def __init__(self) -> None:
        self.changes: deque[tuple[float, int, int, UnderWay]] = deque()
        """When something left which phase for which other; appended to by any thread."""
        self.seconds = [0.0] * (NOWHERE + 1)
        """By phase; last what is in none of them."""
        self.estimated = 0.0
        """Those seconds of ``LOOP_WAIT`` that are an upper bound."""
        self.inside = [0] * (NOWHERE + 1)
        """How many things are in each phase, as of the changes taken in so far."""
        self.under_way = 0
        """All of those that are in a phase."""

    def close(
        self,
        began: float,
        ended: float,
        ready: float,
        doubtful: float,
        waiting_for: object = None,
        waiting_as: int = NOWHERE,
    ) -> None:
        """Share out a gap that is over.

        From ``ready`` on it was waiting for the loop. From ``doubtful`` on it may have been, unless
        something is known to have been under way. ``waiting_as`` is the phase of all other moments
        in which nothing was. Both moments are ``ended`` where there is no such thing.
        """
        seconds = self.seconds
        inside = self.inside
        changes = self.changes
        if ready < began:
            ready = began
        if ready > ended:
            ready = ended
        under_way = self.under_way
        if not changes and not under_way and doubtful >= ready:  # as it is most of the time
            seconds[waiting_as] += ready - began
            seconds[LOOP_WAIT] += ended - ready
            return
        freed: UnderWay | None = None
        phase = _first(inside) if under_way else NOWHERE
        while changes:
            at, left, entered, stay = change = changes.popleft()
            if at > ready:
                changes.appendleft(change)
                break
            if at > began:
                if phase != NOWHERE:
                    seconds[phase] += at - began
                else:
                    self._add_unknown(began, at, doubtful, waiting_as)
                began = at
            inside[left] -= 1
            inside[entered] += 1
            if left == NOWHERE:
                under_way += 1
            if entered == NOWHERE:
                under_way -= 1
                freed = stay
                phase = _first(inside) if under_way else NOWHERE
            else:
                freed = None
                phase = entered if under_way == 1 else _first(inside)
        self.under_way = under_way
        if freed is not None and freed.awaited is waiting_for is not None:
            ready = began  # it was over, and nothing else was waited for
        elif phase != NOWHERE:
            seconds[phase] += ready - began
        else:
            self._add_unknown(began, ready, doubtful, waiting_as)
        seconds[LOOP_WAIT] += ended - ready

    def enter(self, phase: int) -> None:
        """Something enters ``phase`` right now: for the thread that runs the request, in a step."""
        self.inside[phase] += 1
        self.under_way += 1

    def leave(self, phase: int) -> None:
        """And is over, in a step as well."""
        self.inside[phase] -= 1
        self.under_way -= 1

    def present(self) -> int:
        """The phase things are in right now; ``NOWHERE`` if nothing is under way. Any thread."""
        inside = list(self.inside)
        for _, left, entered, _ in list(self.changes):
            inside[left] -= 1
            inside[entered] += 1
        return _first(inside)

    def is_settled(self) -> bool:
        """Whether nothing is under way and no change of that has come in."""
        return not self.changes and not self.under_way

    def _add_unknown(self, began: float, ended: float, doubtful: float, otherwise: int) -> None:
        """Nothing was under way from ``began`` to ``ended``."""
        seconds = self.seconds
        if doubtful < ended:
            doubtful = max(doubtful, began)
            seconds[LOOP_WAIT] += ended - doubtful
            self.estimated += ended - doubtful
            ended = doubtful
        seconds[otherwise] += ended - began


def _first(inside: list[int]) -> int:
    if inside[POOL_WAIT] > 0:
        return POOL_WAIT
    if inside[THREAD_WAIT] > 0:
        return THREAD_WAIT
    return THREAD_RUN if inside[THREAD_RUN] > 0 else NOWHERE
