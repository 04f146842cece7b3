"""What was said of one freeze, held against the truth about it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

_SAME = 0.5
"""A record that has so much of the shorter of the two in common with a freeze is of it."""

_DISTURBED = 0.25
"""A freeze that waited for a CPU for more than that share is another one than was planned."""

Shown = dict[str, Any]
"""One stall as `/api/stalls` has it."""


@dataclass
class Freeze:
    """One that happened. Times are Unix seconds; `lines` are `file.py:line` of what blocks."""

    kind: str
    loop: str
    ms: int
    pid: int
    start: float
    end: float
    lines: Sequence[str]
    route: str
    """What is to be accused; empty for a thread's, which serves none."""
    waited: float = 0.0
    """Seconds of it in which what blocks waited for a CPU itself."""
    thread: str = ""
    """The thread that is to blame; empty where it is the loop's own."""
    shown: list[Shown] = field(default_factory=list[Shown])
    """What the last answer says of it."""
    shown_after: float | None = None
    """Seconds from its start until an answer had something of it."""
    named_after: float | None = None
    """Seconds until an answer had the right line."""

    @property
    def is_disturbed(self) -> bool:
        """Whether the machine was the cause as much: then nobody has to be accused."""
        return self.waited > _DISTURBED * (self.end - self.start)

    def is_in(self, stall: Shown) -> bool:
        """Whether a record is of this one."""
        until = stall["started_at"] + stall["duration_s"]
        common = min(until, self.end) - max(stall["started_at"], self.start)
        shorter = min(stall["duration_s"], self.end - self.start)
        return bool(stall["worker"] == str(self.pid) and common > _SAME * shorter)

    def see(self, stalls: Iterable[Shown], moment: float) -> None:
        """Take note of an answer that came at `moment`."""
        found = [stall for stall in stalls if self.is_in(stall)]
        if found and self.shown_after is None:
            self.shown_after = moment - self.start
        if self.named_after is None and any(map(self.is_named, found)):
            self.named_after = moment - self.start
        self.shown = found

    def is_named(self, stall: Shown) -> bool:
        """Whether a record names the line, and the thread if it is another one's."""
        return any(self._is(thread, line) for thread, line in _named(stall))

    def is_wrong(self, stall: Shown) -> bool:
        """Whether what was seen from outside accuses anybody else."""
        return not all(self._is(*named) for named in _named_outside(stall["outside"]))

    def is_told_wrong(self, stall: Shown) -> bool:
        """Whether the record itself does, be it for what its worker has seen."""
        return not all(self._is(*named) for named in _named_by_record(stall))

    def _is(self, thread: str, line: str) -> bool:
        place = line.partition(" ")[0].rpartition("/")[2]
        return thread == self.thread and place in self.lines

    @property
    def is_seen(self) -> bool:
        """Whether the line was seen from outside."""
        return any(
            self._is(thread, line)
            for stall in self.shown
            for thread, line in _named_outside(stall["outside"])
        )

    @property
    def error(self) -> float | None:
        """Seconds that the record has too many, or too few."""
        if len(self.shown) != 1:
            return None
        return float(self.shown[0]["duration_s"] - (self.end - self.start))


def _named(stall: Shown) -> Iterable[tuple[str, str]]:
    """All that a record accuses: each a thread, "" for the loop's, and a line."""
    yield from _named_outside(stall["outside"])
    yield from _named_by_record(stall)


def _named_by_record(stall: Shown) -> Iterable[tuple[str, str]]:
    if stall["location"]:
        yield "", stall["location"]
    evidence = stall["evidence"]
    if evidence.get("thread_location"):
        yield evidence.get("thread_name", ""), evidence["thread_location"]


def _named_outside(outside: Shown | None) -> Iterable[tuple[str, str]]:
    if outside is not None and outside["location"]:
        yield "", outside["location"]
    if outside is not None and outside["thread_location"]:
        yield outside["thread"], outside["thread_location"]


@dataclass(frozen=True)
class Tally:
    """Of several freezes of one kind: how many of them, and seconds."""

    count: int
    disturbed: int
    seen: int
    wrong: int
    told_wrong: int
    route: int
    one: int
    errors: Sequence[float]
    shown_after: Sequence[float]
    named_after: Sequence[float]

    @classmethod
    def of(cls, freezes: Sequence[Freeze]) -> Tally:
        """Count."""
        return cls(
            count=len(freezes),
            disturbed=sum(each.is_disturbed for each in freezes),
            seen=sum(each.is_seen for each in freezes),
            wrong=sum(any(map(each.is_wrong, each.shown)) for each in freezes),
            told_wrong=sum(any(map(each.is_told_wrong, each.shown)) for each in freezes),
            route=sum(any(s["route"] == each.route for s in each.shown) for each in freezes),
            one=sum(len(each.shown) == 1 for each in freezes),
            errors=[each.error for each in freezes if each.error is not None],
            shown_after=[each.shown_after for each in freezes if each.shown_after is not None],
            named_after=[each.named_after for each in freezes if each.named_after is not None],
        )
