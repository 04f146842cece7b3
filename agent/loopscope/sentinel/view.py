"""What one look from outside says of a loop that does not come round.

py-spy lists all threads of the process, each with its stack, and which of them has the interpreter.
The one that has it keeps it from the loop, unless it is the loop's own. Where none has it, the loop
has let go of it in a call that blocks; or it has not, and waits: for the interpreter or a CPU. Then
there is no line to blame, nor is there where the loop's thread was not given a CPU.

A look shows a moment, and the kernel's books tell of all the time until then. A thread that is on a
CPU although it has hardly used any, or off it although it has used it all, is at something else
than what took the time: it is just about to come round, and its line is innocent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from types import CodeType
from typing import Any

from loopscope.core.stacks import Stack, UserCode
from loopscope.sentinel.pyspy import SeenFrame, SeenThread

Schedule = tuple[float, float, int]
"""Of a thread: seconds on a CPU, seconds waiting for one, times put on one."""

RouteOf = Callable[[str, str, int], str]
"""Of a file, function and line: the route it serves, or nothing."""

_COMPUTES = 0.5
"""A thread that uses so much of the time in which it may run computes."""
_HARDLY = 0.2
"""One that uses less of it hardly computes; one that computes all the time leaves less over."""
_STARVES = 0.5
"""One that waits for a CPU for so much of the time, and has used next to none, is not to blame."""


@dataclass(frozen=True, slots=True)
class Books:
    """What the kernel knows of the loop's thread since its beat was missed, in seconds."""

    computing: float = 0.0
    waiting: float = 0.0
    """For a CPU."""
    lasted: float = 0.0

    @classmethod
    def between(cls, before: Schedule | None, after: Schedule | None, lasted: float) -> Books:
        """What two readings, so many seconds apart, say; nothing where one is missing."""
        if before is None or after is None:
            return cls()
        return cls(after[0] - before[0], after[1] - before[1], lasted)

    def computes(self, share: float = _COMPUTES) -> bool:
        """Whether the thread was busy for such a ``share`` of the time, as far as it was let."""
        able = self.lasted - self.waiting
        return able > 0 and self.computing >= share * able

    def contradict(self, *, active: bool) -> bool:
        """Whether a thread seen on a CPU, or off it, has spent hardly any of the time so."""
        if self.lasted <= 0:
            return False  # there are no books
        return self.computes(1.0 - _HARDLY) if not active else not self.computes(_HARDLY)

    def starves(self, threshold: float) -> bool:
        """Whether the thread would have been done in less than ``threshold`` seconds, if let."""
        return self.waiting >= _STARVES * self.lasted > 0 and self.computing < threshold


@dataclass(frozen=True, slots=True)
class View:
    """One look. ``thread`` is empty where the loop's own thread is to blame, or none."""

    cause: str
    location: str = ""
    label: str = ""
    leaf: str = ""
    route: str = ""
    thread: str = ""
    native_id: int = 0
    thread_location: str = ""
    keeps_gil: bool = False
    """Whether the loop's own thread blocks and keeps the interpreter: nobody else can have seen."""
    frames: tuple[str, ...] = ()
    """The stack of the thread that is to blame, or else the loop's; outermost first."""

    def as_json(self, looks: int) -> dict[str, Any]:
        """As ``/api/stalls`` shows it below ``outside``; the keys are only ever extended."""
        return {
            "looks": looks,
            "cause": self.cause,
            "location": self.location,
            "leaf": self.leaf,
            "thread": self.thread,
            "thread_location": self.thread_location,
            "keeps_gil": self.keeps_gil,
            "frames": list(self.frames),
        }


def viewed(
    threads: Iterable[SeenThread],
    loop: int,
    books: Books,
    users: UserCode,
    route_of: RouteOf,
    threshold: float,
) -> View:
    """What ``threads`` say of the loop that the thread of native id ``loop`` runs.

    ``threshold`` seconds of its own are what it may take.
    """
    by_id = {thread.native_id: thread for thread in threads}
    mine = by_id.get(loop)
    owner = next((thread for thread in by_id.values() if thread.owns_gil), None)
    if mine is None:
        return View("unknown")
    if owner is not None and owner is not mine and not books.computes(_HARDLY):
        return _contention(owner, mine, users, route_of)
    stack = as_stack(mine.frames)
    place = users.find(stack)
    described = users.described(stack)
    if books.starves(threshold):
        return View("starved", frames=described, leaf=users.leaf(stack))
    has_none = owner is None and (place is None or books.computes())
    takes_turns = owner is not None and owner is not mine
    if has_none or takes_turns or books.contradict(active=mine.active):
        return View("unknown", frames=described, leaf=users.leaf(stack))
    computes = books.computes()
    return View(
        "cpu" if computes else "blocking_call",
        location=users.location(stack),
        label=users.label(stack),
        leaf=users.leaf(stack),
        route=_route(mine.frames, route_of),
        frames=described,
        keeps_gil=owner is mine and not computes,
    )


def _contention(owner: SeenThread, mine: SeenThread, users: UserCode, route_of: RouteOf) -> View:
    stack = as_stack(owner.frames)
    return View(
        "gil_contention",
        leaf=users.leaf(as_stack(mine.frames)),
        route=_route(owner.frames, route_of),
        thread=owner.name,
        native_id=owner.native_id,
        thread_location=users.location(stack) or users.leaf(stack),
        frames=users.described(stack),
    )


def _route(frames: Sequence[SeenFrame], route_of: RouteOf) -> str:
    """The innermost endpoint's: one may call another's function, but not the other way round."""
    routes = (route_of(each.file, each.function, each.line) for each in reversed(frames))
    return next(filter(None, routes), "")


def as_stack(frames: Iterable[SeenFrame]) -> Stack:
    """Frames of another process as ``core.stacks`` knows them."""
    return tuple((_code(each.file, each.function), each.line) for each in frames)


@cache
def _code(file: str, function: str) -> CodeType:
    """A code object in name only. As many as there are functions that hold up loops."""
    return _nothing.__code__.replace(
        co_filename=file, co_name=function.rpartition(".")[2], co_qualname=function
    )


def _nothing() -> None: ...
