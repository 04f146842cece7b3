"""One wait for something in a pool, and one use of it, from asking to giving back."""

from __future__ import annotations

from asyncio import CancelledError
from typing import TYPE_CHECKING, Any

from loopscope.core.leak import Reason
from loopscope.core.phases import NOWHERE, POOL_WAIT, Gaps, Stay
from loopscope.core.stacks import Place
from loopscope.sources.exchange import Exchange
from loopscope.sources.ledger import Claim

if TYPE_CHECKING:
    from loopscope.sources.pools.meter import Meter

_GRACE = 1.0
"""Seconds for which whoever has ended may still hold something: given back by a task it left."""


class _Aftermath:
    """What is kept of a use that has lasted: most are over before anybody looks."""

    __slots__ = ("claim", "ended", "is_lasting", "leaked", "route")

    def __init__(self) -> None:
        self.route = ""
        self.claim: Claim | None = None
        self.ended = 0.0
        self.leaked: Reason | None = None
        self.is_lasting = False


class Use:
    """It waits, then it has what it wanted, then it is over. For one thread at a time.

    While it waits, the request it belongs to is in phase ``pool_wait``, unless the wait is in a
    phase of its own (``is_phase`` false).

    What is timed is handed to the book as it is, and only measured out by whoever folds. This is
    written for few bytecodes: it runs twice for each query of a service.
    """

    __slots__ = ("_aftermath", "_gaps", "_stay",
                 "asked", "began", "ended", "exchange", "meter", "place")  # fmt: skip

    ended: float
    """When it gave back what it had; not set before."""

    def __init__(
        self,
        meter: Meter,
        exchange: Exchange | None,
        now: float,
        place: Place | None,
        is_phase: bool = True,
    ) -> None:
        self.meter = meter
        self.asked = now
        self.began = -1.0
        """When it got what it waited for; below zero until then."""
        self.place = place
        """The line of the user's code that asked, as code and instruction."""
        self.exchange = exchange
        """The request whose it is, as long as that is kept."""
        self._gaps: Gaps | None = None
        self._stay: Stay | None = None
        self._aftermath: _Aftermath | None = None
        if exchange is not None and is_phase:
            self._gaps = gaps = exchange.own_gaps()
            if gaps is not None:
                gaps.inside[POOL_WAIT] += 1  # as ``enter`` does
                gaps.under_way += 1
            else:  # in a thread of its own, or in no step
                self._stay = stay = exchange.stay()
                if stay is not None:
                    stay.move(POOL_WAIT, now)
        meter.live.add(self)

    @property
    def is_waiting(self) -> bool:
        """Whether it still waits."""
        return self.began < 0.0 and self in self.meter.live

    @property
    def since(self) -> float:
        """Since when it waits or, once it has what it waited for, since when it has that."""
        return self.asked if self.began < 0.0 else self.began

    @property
    def owner(self) -> Exchange | str:
        """The request whose it is, or that one's route; "" outside of requests."""
        return self.exchange or self.route

    @property
    def route(self) -> str:
        """Whose it is, once that is all that is kept of the request."""
        return "" if self._aftermath is None else self._aftermath.route

    @property
    def leaked(self) -> Reason | None:
        """Why it counts as a leak, as of the latest look."""
        return None if self._aftermath is None else self._aftermath.leaked

    def route_so_far(self) -> str:
        """The route of the request whose it is, as far as that is known; "" outside of requests."""
        exchange = self.exchange
        return self.route if exchange is None else exchange.route_so_far()

    def got(self) -> None:
        """It has what it wanted. Twice is once."""
        if self.began >= 0.0:
            return
        meter = self.meter
        self.began = now = meter.now()
        gaps = self._gaps
        if gaps is not None:
            owner: Any = self.exchange  # let go of by none that waits
            if owner.step_started > owner.suspended:
                self._gaps = None
                gaps.inside[POOL_WAIT] -= 1  # as ``leave`` does
                gaps.under_way -= 1
            else:
                self._leave(now)
        elif self._stay is not None:
            self._leave(now)
        waits = meter.waits
        if len(waits) < meter.most_events:
            waits.append(self)
        else:
            meter.book.lost += 1

    def failed(self, error: BaseException) -> None:
        """It will not have it."""
        meter = self.meter
        now = meter.now()
        if self.began < 0.0:
            meter.live.discard(self)
            self._leave(now)
        meter.over(_kind_of(error), now - self.asked, self.owner)

    def release(self) -> None:
        """It has given back what it had. Twice is once."""
        if self.began < 0.0:
            return
        meter = self.meter
        try:
            meter.live.remove(self)
        except KeyError:
            return
        self.ended = meter.now()
        uses = meter.uses
        if len(uses) < meter.most_events:
            uses.append(self)
        else:
            meter.book.lost += 1

    def lasts(self) -> None:
        """It may be held for as long as whoever has it likes: a subscription."""
        self._after().is_lasting = True

    def look(self, now: float, leak_after: float) -> bool:
        """See whether it counts as a leak; whether that is news."""
        before = self.leaked
        reason = self.reason_to_worry(now, leak_after)
        self._after().leaked = reason
        return before is None and reason is not None

    def reason_to_worry(self, now: float, leak_after: float) -> Reason | None:
        """Why it is to be called a leak; None while it is not."""
        after = self._after()
        if self._has_ended():
            after.ended = after.ended or now
            if now - after.ended >= _GRACE:
                return "request_ended"
        is_too_long = now - self.began >= leak_after and not after.is_lasting
        return "held_too_long" if is_too_long else None

    def settle(self) -> None:
        """Keep the route alone of a request that has been routed, or is over.

        A leak must not keep the request's body with it.
        """
        exchange = self.exchange
        if exchange is not None:
            after = self._after()
            after.route = exchange.route_so_far()
            if after.route or not exchange.is_under_way():
                after.claim = Claim(exchange)
                self.exchange = None

    def _after(self) -> _Aftermath:
        after = self._aftermath
        if after is None:
            after = self._aftermath = _Aftermath()
        return after

    def _has_ended(self) -> bool:
        """Whether it was a request's that is over."""
        claim = self._after().claim
        exchange = self.exchange if claim is None else claim()
        if exchange is None:
            return claim is not None
        return not exchange.is_under_way()

    def _leave(self, now: float) -> None:
        """Leave the phase it is in, if any: it waits no more.

        What was asked for in a step may be had in none: in a callback, or in a chore that was
        started eagerly. The gap that this is in has to learn of the moment.
        """
        gaps, owner = self._gaps, self.exchange
        if gaps is not None:
            self._gaps = None
            if owner is not None and owner.step_started > owner.suspended:
                gaps.leave(POOL_WAIT)
            else:
                Stay(gaps, POOL_WAIT).move(NOWHERE, now)
        elif self._stay is not None:
            self._stay.move(NOWHERE, now)
            self._stay = None


def _kind_of(error: BaseException) -> str:
    if isinstance(error, CancelledError | GeneratorExit):
        return "cancelled"
    # Libraries have timeouts of their own, most of them not TimeoutError's children.
    return "timeout" if "Timeout" in type(error).__name__ else "rejected"
