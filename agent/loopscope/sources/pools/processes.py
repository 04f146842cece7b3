"""Process pools: each goes by the line of the user's code that handed it its first function."""

from __future__ import annotations

from typing import Any, Final
from weakref import WeakKeyDictionary

from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.meter import Level, Meter
from loopscope.sources.pools.threads import Names

KIND: Final = "processes"


class ProcessPools:
    """The meters of all process pools. Any thread."""

    def __init__(self, book: PoolBook) -> None:
        self._book = book
        self._names = Names(book)
        self._meters: WeakKeyDictionary[Any, Meter] = WeakKeyDictionary()

    def executor(self, executor: Any) -> Meter:
        """The meter of a ``ProcessPoolExecutor``."""
        meter = self._meters.get(executor)
        if meter is None:
            name = self._names.by_line("process pool")
            meter = self._book.meter(executor, name, KIND, self._level)
            meter = self._meters.setdefault(executor, meter)
        return meter

    def _level(self, executor: Any) -> Level | None:
        meter = self._meters.get(executor)
        if meter is None:
            return Level()
        processes: Any = executor._processes  # noqa: SLF001
        if processes is None and not meter.live:  # shut down
            return None
        return Level(
            capacity=executor._max_workers,  # noqa: SLF001
            idle=max(0, len(processes or ()) - len(meter.held)),
        )
