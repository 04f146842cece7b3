"""Tasks a request makes: gathered, in task groups, under BaseHTTPMiddleware, fired and forgotten.

A task made while a request is ``CURRENT`` has its coroutine wrapped, so that its steps count as
steps of that request. Steps on one loop never overlap, whosever they are: so a request's own steps
and those of its tasks are one line, and what lies between them are its gaps (``sources.ledger``).
What a task does after its request is over is nobody's.

The wrapper stands in for the coroutine: it has its name, its frame, what it awaits and its repr.
What can tell is who asks ``task.get_coro()`` for its identity.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final
from weakref import ref

from loopscope.sources.ledger import LONG, Ledger

if TYPE_CHECKING:
    from loopscope.sources.exchange import Exchange

_ENDED: Final = object()
_NAMES: Final = frozenset(("__name__", "__qualname__"))


class ChildSteps(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are steps of ``exchange``, as long as that is under way."""

    __slots__ = ("__qualname__", "__weakref__", "_exchange", "_ledger", "_since", "coroutine",
                 "made", "number", "waiting_for", "woken")  # fmt: skip

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], exchange: Exchange, ledger: Ledger
    ) -> None:
        now = exchange.now  # called as an attribute, it would be looked up the long way
        named: Any = coroutine
        self.coroutine = coroutine
        self._ledger = ledger
        self._exchange: Exchange | None = exchange
        self.made = made = now()
        suspended = exchange.suspended
        self._since = made if exchange.step_started > suspended else suspended
        """When its latest step ended. Before the first, when it was made or, if that was in no step
        (by a callback), when the gap began: no gap is ever longer than this wait."""
        self.waiting_for: object = None
        """What its latest step yielded."""
        self.woken = 0.0
        ledger.tasks = self.number = number = ledger.tasks + 1
        ledger.children[number] = ref(self)
        try:  # not by a property, for a class can have none of this name
            self.__qualname__ = named.__qualname__
        except AttributeError:
            self.__qualname__ = type(coroutine).__qualname__

    def send(self, value: Any, /) -> Any:
        # One function, as every call of another costs each step of every task.
        exchange = self._exchange
        if exchange is None or exchange.step_started > exchange.suspended:
            return self._step_within(self.coroutine.send, value)
        now = exchange.now
        began = now()
        ledger = self._ledger
        gaps = ledger.gaps
        if began - self._since > LONG or gaps.changes or gaps.under_way:
            exchange.resumed(self, self._since, began, self.waiting_for)
        exchange.step_started = began
        waiting_for = _ENDED
        try:
            waiting_for = self.coroutine.send(value)
        finally:
            self.waiting_for = waiting_for
            self._since = exchange.suspended = ended = now()
            if exchange.last_byte:
                exchange.stepped(began, ended)
            else:  # what that would do
                held = ended - began
                ledger.loop_run += held
                if held > ledger.longest:
                    ledger.longest = held
            if waiting_for is _ENDED:
                self._ended(ended)
        return waiting_for

    def throw(self, *error: Any) -> Any:
        exchange = self._exchange
        if exchange is None or exchange.step_started > exchange.suspended:
            try:
                return self._step_within(self.coroutine.throw, *error)
            finally:
                del error  # or it would keep itself alive, through its traceback and this frame
        began = exchange.now()
        exchange.resumed(self, self._since, began, self.waiting_for)
        exchange.step_started = began
        waiting_for = _ENDED
        try:
            waiting_for = self.coroutine.throw(*error)
        finally:
            del error
            self._since = exchange.suspended = ended = exchange.now()
            self.waiting_for = waiting_for
            exchange.stepped(began, ended)
            if waiting_for is _ENDED:
                self._ended(ended)
        return waiting_for

    def close(self) -> None:
        self.let_go()
        self.coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        """For task factories that await what they are given in a coroutine of their own."""
        argument: Any = None
        step: Callable[[Any], Any] = self.send
        try:
            while True:
                waiting_for = step(argument)
                step = self.send
                try:
                    argument = yield waiting_for
                except BaseException as error:
                    argument = error
                    step = self._closed_by if isinstance(error, GeneratorExit) else self.throw
        except StopIteration as done:
            return done.value
        finally:
            argument = None

    def _closed_by(self, error: BaseException) -> None:
        """Close, but not while an exception is being handled: the coroutine would see that."""
        self.close()
        raise error

    def let_go(self) -> None:
        """Be nobody's from now on."""
        self._exchange = None
        self._ledger.children.pop(self.number, None)

    def _step_within(self, step: Callable[..., Any], *arguments: Any) -> Any:
        """A step that is nobody's, or a part of another: that of a task started eagerly."""
        exchange = self._exchange
        waiting_for = _ENDED
        try:
            waiting_for = step(*arguments)
        finally:
            del arguments
            if exchange is not None:
                self._since = exchange.now()
                self.waiting_for = waiting_for
                if waiting_for is _ENDED:
                    self._ended(self._since)
        return waiting_for

    def _ended(self, moment: float) -> None:
        ledger = self._ledger
        ledger.last_child = (self.__qualname__, moment)
        ledger.task_seconds += moment - self.made
        self.waiting_for = self._exchange = None
        ledger.children.pop(self.number, None)

    # What asyncio, debuggers and other profilers ask a coroutine for, one by one: in a class with
    # a ``__getattr__`` the interpreter takes the long way to all attributes, and cannot cache it.

    __name__: Any = property(attrgetter("coroutine.__name__"))
    cr_await = property(attrgetter("coroutine.cr_await"))
    cr_code = property(attrgetter("coroutine.cr_code"))
    cr_frame = property(attrgetter("coroutine.cr_frame"))
    cr_origin = property(attrgetter("coroutine.cr_origin"))
    cr_running = property(attrgetter("coroutine.cr_running"))
    cr_suspended = property(attrgetter("coroutine.cr_suspended"))

    def __repr__(self) -> str:
        return repr(self.coroutine)


class ForeignSteps(ChildSteps):
    """The same for what is a coroutine but none of the interpreter's own: Cython's, say.

    That may have any attributes, and they are there.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name not in _NAMES:
            raise AttributeError(name)
        return getattr(self.coroutine, name)
