"""Pools of threads: executors, and anyio's limiters, which are all there is to anyio's pool.

What goes through them is followed by ``sources.threads``; here they get their meters. A pool is met
when it is first handed a function, and held weakly from then on.

An executor goes by its threads' name prefix, and one that has none by the line of the user's code
that handed it its first function. An event loop's own is the default executor. anyio's default
limiter is one a loop. Of its other limiters, those of a single token are pools from their second
use on, since FastAPI makes one for each clean-up of a dependency and throws it away.
"""

from __future__ import annotations

import re
import sys
from asyncio import get_running_loop
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from math import isinf
from threading import Lock
from typing import Any, Final
from weakref import WeakSet, ref

from loopscope.core.budget import OVERFLOW
from loopscope.core.running import running_loop
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.meter import Level, Meter

KIND: Final = "threads"
MOST_NAMES: Final = 50
"""Names of executors and limiters; what comes later shares one."""

_DEFAULTS = ("asyncio", "uvloop")
"""How event loops name the threads of the executor they make for themselves."""
_UNNAMED = re.compile(r"ThreadPoolExecutor-\d+")
_OURS = "loopscope"


class Names:
    """Gives pools the names of lines, and of whatever else, up to a bound."""

    def __init__(self, book: PoolBook) -> None:
        self._users = book.users
        self._given: set[str] = set()

    def bounded(self, name: str) -> str:
        """``name``, unless there have been too many others."""
        if name not in self._given and len(self._given) >= MOST_NAMES:
            return OVERFLOW
        self._given.add(name)
        return name

    def by_line(self, what: str) -> str:
        """``what`` with the line of the user's code that is just asking: "what app/work.py:12"."""
        here = sys._getframe(1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        line, _, _ = self._users.describe_place(self._users.caller(here)).rpartition(" ")
        return self.bounded(f"{what} {line}".strip())


class _Aside(Meter):
    """For what is no pool of anybody's: nothing is published of it."""

    def __init__(self, book: PoolBook) -> None:
        super().__init__(book, ("", KIND), lambda: None, is_counted=False)
        self.events = deque[Any](maxlen=0)


class ThreadPools:
    """The meters of all pools of threads. Any thread."""

    def __init__(self, book: PoolBook) -> None:
        self._book = book
        self._names = Names(book)
        self._aside = _Aside(book)
        self._once: WeakSet[Any] = WeakSet()
        """Limiters of one token that have been used, once."""
        self._meters: dict[ref[Any], Meter | None] = {}
        """By pool; anyio's default limiters by their loops."""
        self._meeting = Lock()

    def executor(self, executor: Any) -> Meter | None:
        """The meter of a ``ThreadPoolExecutor``; None for one to keep away from."""
        reference = ref(executor)
        try:
            return self._meters[reference]
        except KeyError:
            with self._meeting:
                if reference not in self._meters:
                    self._keep(reference, self._meet_executor(executor))
                return self._meters[reference]

    def limiter(self, limiter: Any) -> Meter:
        """The meter of a limiter that somebody has handed a function to run in a thread."""
        return self._meters.get(ref(limiter)) or self._meet_limiter(limiter)

    def default_limiter(self, backend: Any) -> Meter:
        """The meter of the running loop's own limiter, which anyio's ``backend`` knows."""
        reference = ref(get_running_loop())
        known = self._meters.get(reference)
        if known is not None:
            return known
        limiter = backend.current_default_thread_limiter()
        found = self._meters.get(ref(limiter))  # watched, maybe
        if found is None:
            found = self._meter(limiter, "anyio default", self._limiter_level)
            self._keep(ref(limiter), found)
        self._keep(reference, found)
        return found

    def adopt(self, limiter: Any, meter: Meter) -> None:
        """From now on ``meter`` is that of ``limiter``."""
        self.forget(limiter)
        self._keep(ref(limiter), meter)

    def forget(self, limiter: Any) -> None:
        """It gets a new meter, should it ever need one."""
        before = self._meters.pop(ref(limiter), None)
        for reference, meter in list(self._meters.items()):
            if meter is before:  # its loop's
                self._meters.pop(reference, None)

    def _keep(self, reference: ref[Any], meter: Meter | None) -> None:
        for each in list(self._meters):
            if each() is None:
                self._meters.pop(each, None)
        self._meters[reference] = meter

    def _meter(self, pool: Any, name: str, level: Any) -> Meter:
        return self._book.meter(pool, name, KIND, level)

    def _meet_executor(self, executor: Any) -> Meter | None:
        prefix = str(getattr(executor, "_thread_name_prefix", ""))
        if prefix.startswith(_OURS) or not _runs_here(executor):
            return None
        return self._meter(executor, self._name_of(executor, prefix), self._executor_level)

    def _name_of(self, executor: Any, prefix: str) -> str:
        if prefix in _DEFAULTS:
            return "default executor"
        if prefix and not _UNNAMED.fullmatch(prefix):
            return self._names.bounded(prefix)
        if getattr(running_loop(), "_default_executor", None) is executor:
            return "default executor"
        return self._names.by_line("executor")

    def _meet_limiter(self, limiter: Any) -> Meter:
        if limiter.total_tokens == 1 and limiter not in self._once:
            self._once.add(limiter)
            return self._aside
        meter = self._meter(limiter, self._names.by_line("limiter"), self._limiter_level)
        self._keep(ref(limiter), meter)
        return meter

    def _executor_level(self, executor: Any) -> Level | None:
        meter = self._meters.get(ref(executor))
        if meter is None:
            return Level()
        if executor._shutdown and not meter.live:  # noqa: SLF001
            return None
        threads = len(executor._threads)  # noqa: SLF001
        return Level(
            capacity=executor._max_workers,  # noqa: SLF001
            idle=max(0, threads - len(meter.held)),
        )

    def _limiter_level(self, limiter: Any) -> Level:
        """Tokens may also be taken without a thread, and given back while the thread runs on."""
        meter = self._meters.get(ref(limiter))
        in_use = max(limiter.borrowed_tokens, 0 if meter is None else len(meter.held))
        total = limiter.total_tokens
        if isinf(total):
            return Level(in_use=in_use)
        return Level(capacity=total, in_use=in_use, idle=max(0, total - in_use))


def _runs_here(executor: object) -> bool:
    """Whether functions run in this interpreter. For others they are pickled: hands off."""
    kind = type(executor)
    return kind is ThreadPoolExecutor or all(
        base.__name__ != "InterpreterPoolExecutor" for base in kind.__mro__
    )
