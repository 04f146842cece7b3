"""The request ledger: what one request did with its time while it was not running.

A request is a line of time cut into steps (its code runs on the loop, in its own coroutine or in a
task it made) and the gaps between them. Steps are timed by whoever runs them (``Steps``,
``ChildSteps``). A gap that is long, or in which something is under way, is shared out here
(``core.phases``); all others, which is most, cost nothing and end up in ``await_other``, which is
what the duration leaves over. So the phases add up to the duration by construction; what there is
to get wrong is only which phase a moment belongs to.

What a gap's end was waiting for the loop (``loop_wait``) is known from three witnesses, best first:
the moment the task was woken, where wake-ups are stamped (``sources.wakeups``); the moment the loop
came back from polling, since whatever runs in one pass of asyncio's loop was ready before it; and a
stall that had just ended, of which the request may have waited for all or nothing: that share is an
upper bound and kept apart as ``estimated``.
"""

from __future__ import annotations

from collections.abc import Container
from contextvars import ContextVar
from threading import get_ident
from typing import TYPE_CHECKING, Protocol
from weakref import ref

from loopscope.core.chains import Chain
from loopscope.core.phases import CLIENT_DOWNLOAD, CLIENT_UPLOAD, NOWHERE, Gaps
from loopscope.sources.awaits import AwaitTable, Waited

if TYPE_CHECKING:
    from loopscope.sources.children import ChildSteps
    from loopscope.sources.exchange import Driver, Exchange
    from loopscope.sources.requests import HttpExchange

LONG = 0.001
"""Seconds from which a gap is worth looking at. Shorter ones are ``await_other``."""

AFTERMATH = 0.01
"""Seconds after a stall in which whoever runs may have been waiting for its end."""

MOST_AWAITS = 256
"""Long waits remembered of one request."""

MOST_SLEEPS = 1024
"""Sleeps remembered of one request, all at one time."""


class Claim(ref["Exchange"]):
    """That a context is one of a request's. It does not keep the request.

    Whatever copies a context (tasks, timers, a connection that is read from) may live for as long
    as the service does, and should not hold on to the body of the request that happened to make it.
    """

    within: Claim | None = None
    """Of the request whose code has called the app itself and was interrupted by this one."""


CURRENT: ContextVar[Claim | None] = ContextVar("loopscope_current", default=None)
"""Whose code this is: see ``current``. Inherited by tasks and threads that copy the context, and so
found there also after the request is over."""


class Server(Protocol):
    """What serves requests on one thread."""

    latest: Exchange | None
    """The one it was called for last."""

    @property
    def active(self) -> Container[object]:
        """Those that have begun and not ended."""
        ...


SERVERS: dict[int, Server] = {}
"""By the thread they serve."""

HELPERS: dict[int, Claim] = {}
"""By the thread that runs something for it right now. A context is no help there: an executor's has
none, and the one that ``asyncio.to_thread`` copies may be from before anybody asked."""


def current() -> Exchange | None:
    """The request whose code asks, if it is one's and under way.

    A context variable says so, but most requests never wait, start nothing and are never asked
    about, and should not pay for setting it. So it is set by ``Steps`` when a request first waits,
    and here when somebody asks before that.
    """
    claim = _claim_here()
    exchange = None if claim is None else claim()
    server = _server_of(get_ident())
    if server is None:
        return claimed(claim) or claimed(HELPERS.get(get_ident()))
    active = server.active
    latest = server.latest
    if (
        latest is not exchange and latest is not None and latest.steps is None and latest in active
    ):  # this is its first step
        mine = Claim(latest)
        mine.within = _lasting(claim)
        CURRENT.set(mine)
        return latest
    return exchange if exchange in active else claimed(claim)


_claim_here = CURRENT.get
_server_of = SERVERS.get


def claim_on(exchange: Exchange) -> Claim:
    """A claim of ``exchange``, which is ``current``: the context's, if that has it."""
    claim = CURRENT.get()
    return claim if claim is not None and claim() is exchange else Claim(exchange)


def claimed(claim: Claim | None) -> Exchange | None:
    """The request a context is one of, if that is under way."""
    lasting = _lasting(claim)
    return None if lasting is None else lasting()


def _lasting(claim: Claim | None) -> Claim | None:
    """``claim``, or the first around it whose request is under way."""
    while claim is not None:
        exchange = claim()
        if exchange is not None and exchange.is_under_way():
            return claim
        claim = claim.within
    return None


class LoopView(Protocol):
    """What a ledger asks about the event loop."""

    busy_since: float
    """When the present pass of the loop began; 0.0 where that is not known."""
    latest_stall: tuple[float, float]
    """The latest hold beyond the threshold: from when, until when."""


class UnseenLoop:
    """Where nobody watches the loop."""

    busy_since = 0.0
    latest_stall = (0.0, 0.0)


class Ledger:
    """Everything about one request's waits, and about the tasks it made."""

    __slots__ = ("awaits", "children", "gaps", "last_child", "longest",
                 "loop_run", "sleeps", "task_seconds", "tasks")  # fmt: skip

    def __init__(self) -> None:
        self.gaps = Gaps()
        self.loop_run = 0.0
        """Seconds of the steps of its tasks until the last body byte."""
        self.longest = 0.0
        """Seconds of the longest of these steps."""
        self.tasks = 0
        """How many tasks were made for it."""
        self.task_seconds = 0.0
        """For how long those of them were there that have ended, all together."""
        self.children: dict[int, ref[ChildSteps]] = {}
        """Those of them that have not ended, by number. Weakly: a task that nobody waits for or
        will wake is garbage, and asyncio says so."""
        self.last_child: tuple[str, float] = ("", 0.0)
        """Which of them ended last, by the name of its coroutine, and when."""
        self.awaits: list[Waited] = []
        """Long waits in the order they ended."""
        self.sleeps: dict[int, tuple[object, float]] = {}
        """Futures that just wait for a moment, by their ids, and when they will be done."""

    def alive(self) -> list[ChildSteps]:
        """The tasks that have not ended. From any thread."""
        found = [reference() for reference in list(self.children.values())]
        return [child for child in found if child is not None]

    def let_go(self) -> None:
        """Whatever its tasks do from now on is nobody's."""
        for child in self.alive():
            child.let_go()

    def note_sleep(self, future: object, until: float) -> None:
        """``future`` will be done at the moment ``until``."""
        if len(self.sleeps) < MOST_SLEEPS:
            self.sleeps[id(future)] = (future, until)

    def note_wait(
        self, table: AwaitTable, driver: Driver, since: float, moment: float, *, alone: bool
    ) -> None:
        """A long wait of ``driver`` is over; ``alone`` if nothing else of it ran meanwhile."""
        if len(self.awaits) < MOST_AWAITS:
            chain = table.look(driver.coroutine, moment, moment - since)
            child = ""
            if _waits_for_tasks(chain) and self.last_child[1] >= since:
                child = self.last_child[0]
            self.awaits.append(Waited(driver.number, chain, child, alone, moment - since))

    def close_gap(
        self,
        exchange: HttpExchange,
        loop: LoopView,
        driver: Driver,
        since: float,
        began: float,
        waiting_for: object,
    ) -> None:
        """The gap since the exchange's latest step ends with a step of ``driver`` at ``began``.

        That had waited for ``waiting_for`` since ``since``.
        """
        gap_began = exchange.suspended
        due = self.sleeps.pop(id(waiting_for), _NO_SLEEP)[1] if self.sleeps else 0.0
        ready = driver.woken if driver.woken > since else began
        if due and due < ready:  # a sleep may also have been ended before its time
            ready = due
        busy_since = loop.busy_since
        if busy_since and busy_since < ready:
            ready = busy_since
        if ready < gap_began:
            ready = gap_began
        doubtful = began
        stall_began, stall_ended = loop.latest_stall
        if gap_began < stall_ended <= ready < stall_ended + AFTERMATH and not due:
            doubtful = stall_began
        waiting_as = NOWHERE
        if exchange.is_uploading:
            waiting_as = CLIENT_UPLOAD
        elif exchange.is_sending():
            waiting_as = CLIENT_DOWNLOAD
        self.gaps.close(gap_began, began, ready, doubtful, waiting_for, waiting_as)


_NO_SLEEP = (None, 0.0)


def _waits_for_tasks(chain: Chain) -> bool:
    """Whether what is waited for is the last of some tasks."""
    return chain.leaf == "gather" or (
        bool(chain.stack) and chain.stack[-1][0].co_qualname == "TaskGroup.__aexit__"
    )
