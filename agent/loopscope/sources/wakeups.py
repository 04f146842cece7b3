"""When tasks of requests are woken: from then on they wait for nothing but the event loop.

A future that is done wakes its task through ``loop.call_soon``, asyncio's C code and uvloop's
futures included. Standing in for that method on the loop's own instance, every wake-up can be
stamped. And ``asyncio.sleep`` says when it will be over: it asks ``loop.call_later`` to end a
future. A busy loop sees to that late, and what it is late is waiting for the loop as well.

Both cost every call a fraction of a microsecond, so it is done only while it tells something: from
the first pass of the loop that takes a millisecond on, until there has been none for a while. In a
loop without long passes nobody waits for long.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final

from loopscope.sources.children import ChildSteps, ForeignSteps
from loopscope.sources.ledger import CURRENT, current

_END_SLEEP: object = getattr(asyncio.futures, "_set_result_unless_cancelled", None)
"""What ``asyncio.sleep`` has called when it is over."""

_TASK: Final[Any] = asyncio.Task
_NONE: Final = object()

LONG_PASS = 0.001
"""Seconds from which a pass of the loop is long."""
LATE = 0.002
"""Seconds from which a beat is late: libuv counts in milliseconds."""
QUIET = 10.0
"""Seconds without either after which stamping ends."""


class WakeUps:
    """Stamps the wake-ups on one loop while that is busy. All of it on the loop's thread."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._loop: Callable[[], asyncio.AbstractEventLoop | None] = lambda: None
        self._standing_in: dict[str, Callable[..., Any]] = {}
        self._busy = 0.0
        """When the loop was last seen to be busy."""

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Stamp on ``loop``, for a while at least."""
        self.detach()
        self._loop = weakref.ref(loop)
        self._start(self._now())  # until the loop has shown that it is a quiet one

    def detach(self) -> None:
        """Leave the loop as it was, unless somebody has put theirs around ours; for good."""
        self._rest()
        self._loop = lambda: None

    def passed(self, seconds: float, moment: float) -> None:
        """A pass of the loop that ended at ``moment`` took so many seconds."""
        if seconds > LONG_PASS:
            self._start(moment)

    def beat(self, late: float, moment: float) -> None:
        """A beat came, and so many seconds late."""
        if late > LATE:
            self._start(moment)
        elif self._standing_in and moment - self._busy > QUIET:
            self._rest()

    def _start(self, moment: float) -> None:
        self._busy = moment
        loop = self._loop()
        if loop is not None and not self._standing_in:
            attributes = _attributes(loop)
            self._standing_in = {
                name: make(getattr(loop, name), self._now)
                for name, make in _STAND_INS.items()
                if name not in attributes  # somebody else stands in there
            }
            attributes.update(self._standing_in)

    def _rest(self) -> None:
        attributes = _attributes(self._loop())
        for name, ours in self._standing_in.items():
            if attributes.get(name) is ours:
                del attributes[name]
        self._standing_in = {}


def _attributes(loop: asyncio.AbstractEventLoop | None) -> dict[str, Any]:
    """Those of the instance; of one without room for any, a dictionary that nobody reads."""
    return getattr(loop, "__dict__", {})


def _stamping(call_soon: Callable[..., Any], now: Callable[[], float]) -> Callable[..., Any]:
    # What wakes a task passes one argument at most, and is handed on without a tuple of them.

    def stamping(
        callback: Callable[..., Any],
        argument: Any = _NONE,
        *others: Any,
        context: Context | None = None,
    ) -> Any:
        if context is not None:
            try:
                task: Any = getattr(callback, "__self__", None)
                # not by `get_coro`, which may crash: see sources.tasks
                driver: Any = task._coro if isinstance(task, _TASK) else None  # noqa: SLF001
            except Exception:  # no attribute of theirs has to be fit to be asked for
                driver = None
            kind: Any = type(driver)  # pyright: ignore[reportUnknownVariableType]
            if kind is ChildSteps or kind is ForeignSteps:
                driver.woken = now()
            elif driver is not None:
                claim = context.get(CURRENT)
                exchange = None if claim is None else claim()
                steps = None if exchange is None else exchange.steps
                if steps is not None:  # in a line of its own: it is of another type
                    steps.woken = now()
        if argument is _NONE:
            return call_soon(callback, context=context)
        if others:
            return call_soon(callback, argument, *others, context=context)
        return call_soon(callback, argument, context=context)

    return stamping


def _noting(call_later: Callable[..., Any], now: Callable[[], float]) -> Callable[..., Any]:
    def noting(
        delay: float,
        callback: Callable[..., Any],
        *arguments: Any,
        context: Context | None = None,
    ) -> Any:
        if callback is _END_SLEEP and arguments:
            exchange = current()
            if exchange is not None:
                exchange.sleeps(arguments[0], now() + delay)
        if context is None:
            return call_later(delay, callback, *arguments)  # costs half of what naming it would
        return call_later(delay, callback, *arguments, context=context)

    return noting


_STAND_INS: Final = {"call_soon": _stamping, "call_later": _noting}
