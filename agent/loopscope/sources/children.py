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
from typing import TYPE_CHECKING, Any, Final

from loopscope.sources.ledger import LONG, Ledger

if TYPE_CHECKING:
    from loopscope.sources.exchange import Exchange

_ENDED: Final = object()
_NAMES: Final = frozenset(("__name__", "__qualname__"))


class ChildSteps(Coroutine[Any, Any, Any]):
    """A coroutine whose steps are steps of ``exchange``, as long as that is under way."""

    __slots__ = ("__weakref__", "_exchange", "_since", "coroutine", "made", "number",
                 "waiting_for", "woken")  # fmt: skip

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], exchange: Exchange, ledger: Ledger
    ) -> None:
        self.coroutine = coroutine
        self._exchange: Exchange | None = exchange
        self.made = self._since = exchange.now()
        """When its latest step ended, or it was made."""
        self.waiting_for: object = None
        """What its latest step yielded."""
        self.woken = 0.0
        ledger.tasks += 1
        self.number = ledger.tasks
        ledger.children.add(self)

    def send(self, value: Any, /) -> Any:
        return self._step(self.coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        try:
            return self._step(self.coroutine.throw, *error)
        finally:
            del error  # or it would keep itself alive, through its traceback and this frame

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
                except GeneratorExit:
                    self.close()
                    raise
                except BaseException as error:
                    argument = error
                    step = self.throw
        except StopIteration as done:
            return done.value
        finally:
            argument = None

    def let_go(self) -> None:
        """Be nobody's from now on."""
        exchange, self._exchange = self._exchange, None
        if exchange is not None and exchange.ledger is not None:
            exchange.ledger.children.discard(self)

    def _step(self, step: Callable[..., Any], *arguments: Any) -> Any:
        exchange = self._exchange
        began = 0.0 if exchange is None else self._begin(exchange)
        waiting_for = _ENDED
        try:
            waiting_for = step(*arguments)
        finally:
            del arguments
            if exchange is not None:
                self._end(exchange, began, waiting_for)
        return waiting_for

    def _begin(self, exchange: Exchange) -> float:
        """When the step begins; 0.0 for one within another step, that of a task started eagerly."""
        if exchange.step_started > exchange.suspended:
            return 0.0
        began = exchange.now()
        ledger = exchange.ledger
        if ledger is not None and (
            began - exchange.suspended > LONG
            or began - self._since > LONG
            or not ledger.gaps.is_settled()
        ):
            exchange.resumed(self, self._since, began, self.waiting_for)
        exchange.step_started = began
        return began

    def _end(self, exchange: Exchange, began: float, waiting_for: object) -> None:
        self._since = ended = exchange.now()
        self.waiting_for = waiting_for
        if began:
            exchange.suspended = ended
            exchange.stepped(began, ended)
        if waiting_for is _ENDED:
            self.waiting_for = None
            if exchange.ledger is not None:
                exchange.ledger.last_child = (_name(self.coroutine), ended)
                exchange.ledger.task_seconds += ended - self.made
            self.let_go()

    # What asyncio, debuggers and other profilers ask a coroutine for.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and name not in _NAMES:
            raise AttributeError(name)
        return getattr(self.coroutine, name)

    def __repr__(self) -> str:
        return repr(self.coroutine)


def _name(coroutine: object) -> str:
    name: object = getattr(coroutine, "__qualname__", None)
    return name if isinstance(name, str) else type(coroutine).__qualname__
