"""Pools that the service itself points out: `watch_pool`.

What is watched is remembered weakly here, whether or not an agent runs; each agent takes it up when
it starts, and lets it go when it stops.
"""

from __future__ import annotations

import re
from asyncio import CancelledError
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self
from weakref import ref

from loopscope.core.faults import Faults
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.instances import is_timed, replace_methods, restore_methods
from loopscope.sources.pools.meter import Level, Meter
from loopscope.sources.pools.sync import Reader, reader_of
from loopscope.sources.pools.threads import ThreadPools
from loopscope.sources.pools.use import Use

_KIND = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*")

_watched: Final[dict[int, Watch]] = {}
"""By the pool's identity; those that are gone take themselves out."""
_sources: Final[list[WatchedSource]] = []
"""Who measures what is watched: one, as long as an agent runs."""


def watch_pool(
    name: str, pool: object, *, capacity: float | None = None, kind: str = "sync"
) -> WatchedPool:
    """Publish ``pool`` as the pool ``name``, until it is gone or no longer watched.

    It may be any of:

    - asyncio's ``Semaphore``, ``BoundedSemaphore``, ``Lock``, ``Queue``, ``LifoQueue`` or
      ``PriorityQueue``. Waits and uses are timed, by route; in a request, waiting is its phase
      ``pool_wait``. Whoever puts into a queue waits until there is room, and an item uses that
      until somebody gets it.
    - anyio's ``Semaphore``, ``Lock``, ``CapacityLimiter`` or either end of a memory object stream,
      or threading's ``Semaphore`` or ``BoundedSemaphore``: how full it is. What runs in threads
      with the limiter is timed as well.
    - an object with a method ``loopscope_pool()``, which returns a mapping with as many of
      ``capacity``, ``in_use``, ``idle`` and ``pending`` as it knows, each a number, or None if
      there is no limit. It is called from another thread whenever figures are read, so it should
      neither block nor wait. What it leaves out of ``in_use`` and ``pending`` is counted where its
      users say so, with `WatchedPool.acquiring`.

    ``capacity`` is how many may be in use at once, for what does not know it itself. A plain
    semaphore's is, if not given, its value at the time of the call. ``kind`` is the label of that
    name: parts of lower-case letters, digits and underscores, joined by dots.

    The agent need not run, and may be started anew; nothing here keeps the pool alive. A pool that
    is watched already is from now on watched under the new name; two pools of one name are told
    apart by a number. Raises ``TypeError`` for an object that is no pool or cannot be referred to
    weakly, and ``ValueError`` for a name, kind or capacity that cannot be published.
    """
    _check(name, capacity, kind)
    reader = reader_of(name, pool, capacity)
    try:
        watch = Watch(name, kind, pool, reader)
    except TypeError:
        raise TypeError(
            f"watch_pool({name!r}): {type(pool).__name__} cannot be referred to weakly; give its "
            "class a slot __weakref__"
        ) from None
    before = _watched.get(id(pool))
    if before is not None:
        before.end()
    _watched[id(pool)] = watch
    for source in _sources:
        source.adopt(watch)
    return WatchedPool(watch)


class WatchedPool:
    """A pool that is published under a name; made by `watch_pool`."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._watch.name!r} ({self._watch.kind})>"

    def unwatch(self) -> None:
        """Publish it no more, and leave the object as it was. Twice is once."""
        self._watch.end()

    def acquiring(self) -> Acquiring:
        """Time a wait and a use of a pool that cannot be timed from the outside.

        ::

            with licences.acquiring() as acquired:
                licence = await pool.take()  # waits
                acquired.got()
                ...                          # uses it until the block is left

        Raises ``TypeError`` for what is timed anyway.
        """
        if is_timed(self._watch.there()):
            raise TypeError(f"{self!r} is timed as it is: acquire and release, or put and get")
        return Acquiring(self._watch)


class Watch:
    """What is known of a watched pool; ``reader`` reads it."""

    def __init__(self, name: str, kind: str, pool: object, reader: Reader) -> None:
        self.name = name
        self.kind = kind
        key = id(pool)
        self.there = ref(pool, lambda _: _watched.pop(key, None))
        self.meter: Meter | None = None
        """As long as somebody measures it."""
        self._reader = reader
        self._is_over = False

    def level(self, pool: object) -> Level | None:
        """How full ``pool`` is; None once nobody wants to know."""
        return None if self._is_over else self._reader(pool)

    def end(self) -> None:
        """Nobody wants to know any more."""
        self._is_over = True
        pool = self.there()
        if pool is not None and _watched.get(id(pool)) is self:
            del _watched[id(pool)]
            for source in _sources:
                source.forget(self)


class Acquiring:
    """One wait and one use; made by `WatchedPool.acquiring`, for one ``with`` statement."""

    __slots__ = ("_has", "_use", "_watch")

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._use: Use | None = None
        self._has = False

    def __enter__(self) -> Self:
        for source in _sources:
            self._use = source.ask(self._watch)
        return self

    def got(self) -> None:
        """The wait is over, and the use begins. Twice is once."""
        use = self._use
        if use is not None and not self._has:
            self._has = True
            for source in _sources:
                source.note(use.got)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        use, self._use = self._use, None
        if use is not None:
            why = error or CancelledError()
            for source in _sources:
                source.note(use.release if self._has else lambda: use.failed(why))


class WatchedSource:
    """Measures what is watched, from ``start`` to ``stop``."""

    def __init__(self, book: PoolBook, threads: ThreadPools, faults: Faults) -> None:
        self._book = book
        self._threads = threads
        self._faults = faults

    def start(self) -> None:
        """Take up what is watched already; twice is once."""
        if self not in _sources:
            _sources.append(self)
            for watch in list(_watched.values()):
                self.adopt(watch)

    def stop(self) -> None:
        """Leave everything as it was."""
        if self in _sources:
            _sources.remove(self)
            for watch in list(_watched.values()):
                self.forget(watch)

    def adopt(self, watch: Watch) -> None:
        """Begin to measure it."""
        self.note(lambda: self._adopt(watch))

    def forget(self, watch: Watch) -> None:
        """Measure it no more."""
        self.note(lambda: self._forget(watch))

    def ask(self, watch: Watch) -> Use | None:
        """Somebody wants something of it."""
        try:
            return None if watch.meter is None else watch.meter.ask()
        except Exception as error:
            self._failed(error)
            return None

    def note(self, change: Callable[[], None]) -> None:
        """Call ``change``; what goes wrong in there is no concern of the service's."""
        try:
            change()
        except Exception as error:
            self._failed(error)

    def _adopt(self, watch: Watch) -> None:
        pool = watch.there()
        if pool is not None and watch.meter is None:
            watch.meter = self._book.meter(pool, watch.name, watch.kind, watch.level)
            replace_methods(pool, watch.meter, self._failed)
            if _is_limiter(pool):
                self._threads.adopt(pool, watch.meter)

    def _forget(self, watch: Watch) -> None:
        watch.meter = None
        pool = watch.there()
        if pool is not None:
            restore_methods(pool)
            if _is_limiter(pool):
                self._threads.forget(pool)

    def _failed(self, error: Exception) -> None:
        self._faults.report("pools.watched", error)


def _check(name: Any, capacity: Any, kind: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"watch_pool: the name is {name!r}; it has to be a string")
    if not name.strip():
        raise ValueError("watch_pool: the name is empty; it is the label that tells pools apart")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise ValueError(
            f"watch_pool({name!r}): kind={kind!r}; allowed are parts of lower-case letters, digits "
            "and underscores, joined by dots, as in sync or http.client"
        )
    if capacity is not None:
        if isinstance(capacity, bool) or not isinstance(capacity, int | float):
            raise TypeError(f"watch_pool({name!r}): capacity={capacity!r} is no number")
        if not capacity > 0:
            raise ValueError(f"watch_pool({name!r}): capacity={capacity!r}; it has to be above 0")


def _is_limiter(pool: object) -> bool:
    return hasattr(pool, "total_tokens")
