"""One conversation between a server and an app, driven step by step.

An ASGI app is a coroutine. Whoever awaits it hands every step straight through; an ``Exchange``
stands in between and does what ``await`` does (PEP 380: forward ``send``, ``throw`` and ``close``),
reading the clock around each step. So the time an exchange holds the event loop is known exactly,
and the longest single hold with it, at the price of two clock readings a step. The first step needs
no generator: many requests have only that one.

Two things keep this invisible to the app. Nothing is raised into it from inside an ``except`` block
of ours, or ``sys.exc_info()`` and ``__context__`` would show our handler. And no local keeps an
exception alive after it has left, or its traceback would form a cycle with our frame.

Whoever makes an exchange (the middleware) calls the app, runs the first step, awaits ``Steps`` if
there are more, and calls ``finish``. Subclasses count what is particular to HTTP or WebSockets.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from functools import partial
from typing import Any, Protocol

from loopscope.core.phases import Gaps, Stay
from loopscope.sources.ledger import CURRENT, LONG, Claim, Ledger

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[Any]]

SCOPE_KEY = "loopscope"
"""Marks a scope as measured, so that a middleware installed twice measures once."""


class Resolver(Protocol):
    """Turns a scope, after routing, into a route template. Never raises."""

    @property
    def app(self) -> object: ...

    def resolve(self, scope: Scope, status: int = 200) -> str: ...

    def is_certain(self, matched: object) -> bool: ...

    def subscribe(self, memo: Any) -> None: ...


class Exchange:
    """One call of an ASGI app. All times in seconds, all moments on the recorder's clock.

    Slots, each set by whoever makes the object: an attribute with a default on the class is slower
    to read and to write than one that is never looked for there.
    """

    __slots__ = ("now", "pending", "scope", "started", "step_started", "steps", "suspended")

    steps: Steps | None
    """What is known about finished steps; None as long as the first one runs."""
    started: float
    step_started: float
    """When the latest step began."""
    suspended: float
    """When the latest finished step ended; before ``step_started`` while a step is running."""
    pending: object
    """An awaitable whose end ``settle`` wants to know about."""
    now: Callable[[], float]
    scope: Scope
    receive: Receive
    """The ``receive`` and ``send`` the app is given."""
    send: Send

    # Defaults on the class, for what few exchanges need.
    ledger: Ledger | None = None
    """What is known of its waits and tasks, once there is something to know."""
    last_byte = 0.0
    """When the last byte of its answer was sent; 0.0 before that."""

    def resumed(self, driver: Driver, since: float, moment: float, waiting_for: object) -> None:
        """A step begins at ``moment``, after a wait that is worth looking at. Must not raise.

        ``driver`` is whose step it is. It had waited for what it yielded, ``waiting_for``, since
        ``since``.
        """

    def stepped(self, began: float, ended: float) -> None:
        """A task of it has run a step. Must not raise.

        Up to the last byte this books the step in the ledger, and whoever runs it may do so itself.
        """

    def is_under_way(self) -> bool:
        """Whether it has begun and not ended. From any thread."""
        return False

    def adopt(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """What to make a task of in place of ``coroutine``, which the app wants to run.

        Only to be asked while it is under way, like ``own_gaps``.
        """
        return coroutine

    def shared_gaps(self) -> Gaps | None:
        """Where to note what changes phases; None where no phases are kept. Any thread."""
        return None

    def stay(self) -> Stay | None:
        """Something to move from phase to phase; None where no phases are kept. Any thread."""
        gaps = self.shared_gaps()
        return None if gaps is None else Stay(gaps)

    def own_gaps(self) -> Gaps | None:
        """What its steps enter and leave phases in; None out of them: ``stay`` is what to use."""
        return None

    def sleeps(self, future: object, until: float) -> None:
        """It will be done waiting for ``future`` at that moment."""

    def route_so_far(self) -> str:
        """The route's template, as far as routing has come. From any thread."""
        return ""

    def finish(self, error: BaseException | None) -> None:
        """The app's coroutine has ended, by ``error`` if not None. Must not raise."""
        raise NotImplementedError

    def settle(self, moment: float, step_started: float, loop_run: float) -> None:
        """A step from ``step_started`` to ``moment`` is over: look after ``pending``.

        ``loop_run`` are the seconds of all steps so far, this one included.
        """


class Driver(Protocol):
    """Who runs a coroutine's steps."""

    coroutine: Coroutine[Any, Any, Any]
    woken: float
    """When the coroutine's task was last woken, as far as that was seen."""

    @property
    def number(self) -> int:
        """0 for the request's own coroutine, else that of a task of it."""
        ...


class Steps:
    """What is left of an exchange after its first step: awaited, it sees the app to its end.

    ``waiting_for`` is what the first step yielded.
    """

    __slots__ = ("_exchange", "_waiting_for", "coroutine", "longest", "loop_run", "woken")

    number = 0

    def __init__(
        self, exchange: Exchange, coroutine: Coroutine[Any, Any, Any], waiting_for: Any
    ) -> None:
        self.coroutine = coroutine
        self.loop_run = 0.0
        """Seconds of finished steps; set at the end, like ``longest``."""
        self.longest = 0.0
        """Seconds of the longest finished step."""
        self.woken = 0.0
        self._exchange = exchange
        self._waiting_for = waiting_for
        exchange.steps = self

    def __await__(self) -> Generator[Any, Any, Any]:
        exchange = self._exchange
        waiting_for = self._waiting_for
        del self._exchange, self._waiting_for  # the exchange knows us: no cycle, no garbage
        coroutine = self.coroutine
        send = coroutine.send
        now = exchange.now
        loop_run = longest = 0.0
        argument: Any = None
        token = CURRENT.set(Claim(exchange))
        try:
            while True:
                moment = now()
                step_started = exchange.step_started
                held = moment - step_started
                loop_run += held
                if held > longest:
                    longest = held
                if exchange.pending is not None:
                    exchange.settle(moment, step_started, loop_run)
                exchange.suspended = moment
                step: Callable[[Any], Any] = send
                try:
                    argument = yield waiting_for
                except BaseException as error:
                    argument = error
                    is_closed = isinstance(error, GeneratorExit)
                    step = partial(_close, coroutine) if is_closed else coroutine.throw
                resumed = now()
                ledger = exchange.ledger
                if resumed - moment > LONG or (
                    ledger is not None and (ledger.gaps.changes or ledger.gaps.under_way)
                ):
                    exchange.resumed(self, moment, resumed, waiting_for)
                exchange.step_started = resumed
                waiting_for = step(argument)
                argument = None
        except StopIteration as done:
            return done.value
        finally:
            self.loop_run = loop_run
            self.longest = longest
            # A failed task knows its error, that the app's frames, and these ours, once they have
            # ended: with the task still in it, they would come full circle.
            argument = waiting_for = None
            try:
                CURRENT.reset(token)
                claim = token.old_value
            except ValueError:  # another context: who ends it (the collector, say) never ran it
                claim = CURRENT.get()
            if isinstance(claim, Claim) and claim() is exchange:  # it was asked for at once
                CURRENT.set(claim.within)


def _close(coroutine: Coroutine[Any, Any, Any], error: BaseException) -> None:
    """What ``close`` does, but not while an exception is being handled: the app would see that."""
    coroutine.close()
    raise error


async def as_coroutine(awaitable: Awaitable[Any]) -> Any:
    """What an app returned that is awaitable but no coroutine."""
    return await awaitable
