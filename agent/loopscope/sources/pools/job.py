"""A function on its way through a pool of threads or processes: queued, running, over."""

from __future__ import annotations

from asyncio import CancelledError
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from loopscope.core.leak import Reason
from loopscope.core.phases import MOST_CHANGES, NOWHERE, THREAD_RUN, THREAD_WAIT, UnderWay
from loopscope.sources.exchange import Exchange
from loopscope.sources.pools.use import Use

if TYPE_CHECKING:
    from loopscope.sources.pools.meter import Meter


class Job(Use):
    """A use of a pool's thread or process, and what the request that handed it over has under way.

    Both change at the same moments, so one object sees to both: ``thread_wait`` is the wait,
    ``thread_run`` the use. A job that belongs to no request, or to one that has been answered, is
    in no phase.

    Nobody looks for the line that asked: while it runs, a function says best where it is from.
    """

    __slots__ = ("_changes", "awaited", "function")

    awaited: object
    """What the coroutine that waits for its end has yielded; None if nobody does yet."""

    def __init__(self, meter: Meter, exchange: Exchange | None, function: Any) -> None:
        now = meter.now()
        Use.__init__(self, meter, exchange, now, None, False)
        self.function: Any = function
        self._changes: deque[tuple[float, int, int, UnderWay]] | None = None
        gaps = None if exchange is None else exchange.shared_gaps()
        if gaps is not None:
            changes = gaps.changes
            if len(changes) < MOST_CHANGES:
                self._changes = changes
                changes.append((now, NOWHERE, THREAD_WAIT, self))

    def begin(self) -> None:
        """A thread or process has taken it up."""
        meter = self.meter
        self.began = now = meter.now()
        meter.over("wait", now - self.asked, self.owner)
        if self._changes is not None:
            self._changes.append((now, THREAD_WAIT, THREAD_RUN, self))

    def end(self) -> None:
        """It has run."""
        changes = self._changes
        now = self.meter.now()
        try:
            self._give_back(now)
            if changes is not None:
                self.awaited = None
                try:
                    self.awaited = self.find_awaited()
                finally:
                    changes.append((now, THREAD_RUN, NOWHERE, self))
        finally:
            # a future may be kept for long
            self._changes = self.exchange = self.function = None

    def release(self) -> None:
        self._give_back(self.meter.now())

    def find_awaited(self) -> object:
        """What the coroutine that waits for its end has yielded; None if nobody does yet."""
        raise NotImplementedError

    def _give_back(self, now: float) -> None:
        """Count the use, whose request is about to be let go of, so not as other uses do."""
        meter = self.meter
        if self in meter.live:
            meter.live.discard(self)
            meter.over("use", now - self.began, self.owner)

    def _leave(self, now: float) -> None:
        changes, self._changes = self._changes, None
        if changes is not None:
            self.awaited = None
            changes.append((now, THREAD_WAIT, NOWHERE, self))

    def drop(self, error: BaseException) -> None:
        """What has not begun never will."""
        if self.is_waiting:
            self.failed(error)
            self.exchange = self.function = None

    def reason_to_worry(self, now: float, leak_after: float) -> Reason | None:
        """What goes on after its request, or belongs to none, may well be meant to."""
        reason = super().reason_to_worry(now, leak_after)
        return reason if reason == "held_too_long" and self.route else None

    def settle(self) -> None:
        super().settle()
        if self.place is None:
            code = _code_of(self.function)
            self.place = None if code is None else (code, 0)


def why(future: Future[Any]) -> BaseException:
    """Why ``future``, which is done, has never run."""
    return CancelledError() if future.cancelled() else RuntimeError()


def _code_of(function: Any) -> Any:
    """The code that is to run in the end; None where that is no Python's."""
    while isinstance(function, partial):
        # asyncio.to_thread runs the context's ``run`` with the function for an argument
        inner: Any = function.func
        function = function.args[0] if _runs_another(inner) and function.args else inner
    return getattr(getattr(function, "__func__", function), "__code__", None)


def _runs_another(function: Any) -> bool:
    return getattr(function, "__qualname__", "") == "Context.run"
