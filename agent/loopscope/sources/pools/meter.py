"""One pool, in the one shape that all pools are measured in.

Whoever wants something from a pool makes a ``Use`` with ``Meter.ask``: it waits, then it has what
it wanted, then it is over. In use, pending and the oldest of both are counted from the live uses,
never by adding and subtracting. Pools that cannot be followed so closely say themselves what there
is: see ``Level``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from loopscope.core.caller import Caller
from loopscope.core.histogram import Histogram, Number
from loopscope.sources.exchange import Exchange
from loopscope.sources.ledger import current
from loopscope.sources.pools.use import Use

if TYPE_CHECKING:
    from loopscope.core.stacks import Place
    from loopscope.sources.pools.book import PoolBook


class Level(NamedTuple):
    """How full a pool is by its own account. None: not known, or no limit, or counted by us."""

    capacity: float | None = None
    in_use: float | None = None
    idle: float | None = None
    pending: float | None = None

    def counted(self, in_use: float, pending: float) -> Level:
        """With these figures where the pool itself gives none."""
        return self._replace(
            in_use=in_use if self.in_use is None else self.in_use,
            pending=pending if self.pending is None else self.pending,
        )


Series = tuple[Histogram | None, Number | None]
"""Where seconds are counted: of the pool, and of one route in it."""


class Meter:
    """What is measured of one pool. Any thread.

    ``level`` reads the pool, from any thread, in microseconds; None once the pool is gone. It
    ``is_counted`` if uses tell what is in use.
    """

    def __init__(
        self,
        book: PoolBook,
        labels: tuple[str, str],
        level: Callable[[], Level | None],
        *,
        is_counted: bool,
    ) -> None:
        self.book = book
        self.labels = labels
        """Name and kind."""
        self.level = level
        self.is_counted = is_counted
        self.is_forgotten = False
        """Whether the pool was gone or closed when somebody looked; used again, it is another."""
        self.live: set[Use] = set()
        """What has been asked for and is not over."""
        self.now = book.now
        self.waits = book.waits
        self.uses = book.uses
        self.events = book.events
        self.most_events = book.most_events
        self.series: dict[tuple[str, str], Series] = {}
        """By kind of event and route; for whoever folds."""
        self._asking = Caller(book.users)
        self._opening = Caller(book.users)

    @property
    def waiting(self) -> set[Use]:
        """The uses that have not got what they wait for, as of now."""
        return {use for use in list(self.live) if use.began < 0.0}

    @property
    def held(self) -> set[Use]:
        """The uses that have got it, and not given it back."""
        return {use for use in list(self.live) if use.began >= 0.0}

    def ask(self, is_phase: bool = True, kind: type[Use] = Use) -> Use:
        """Somebody wants something from the pool, whoever it is that calls us.

        ``is_phase`` is false where the wait is no ``pool_wait`` of the request's.
        """
        return kind(self, current(), self.now(), self._asking.find(), is_phase)

    def opened(self, seconds: float) -> None:
        """Something new has been made, which took so long; by whom is seen from who calls."""
        self.over("create", seconds, current() or "", self._opening.find())

    def rejected(self, count: int = 1) -> None:
        """So many were turned away without having waited."""
        for _ in range(count):
            self.over("rejected", 0.0, "")

    def close(self) -> None:
        """The pool is closed, which is as good as gone: its name is free for the next."""
        self.level = lambda: None

    def over(
        self, kind: str, seconds: float, owner: Exchange | str, place: Place | None = None
    ) -> None:
        """Something is over, and no ``Use`` of the book's will tell of it."""
        events = self.events
        if len(events) < self.most_events:
            events.append((self, kind, seconds, owner, place))
        else:
            self.book.lost += 1
