"""asyncio's own test-suite with our task factory on every loop, and every task in a ledger.

::

    python -m tests.asyncio_suite [--bare] [arguments of python -m test]

Not collected by pytest: it takes minutes, and needs an interpreter that comes with its tests. What
fails with us but not ``--bare`` is about the factory, or about what a task's coroutine is: nothing
on Python 3.11; on 3.12 and 3.13 ``test_eager_task_factory_set``, as ``get_task_factory`` answers
with an eager factory of ours (see ``sources.factory``), and ``test_ensure_future_task_awaitable``,
which asks whether ``task.get_coro()`` is of the interpreter's own type.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Coroutine
from importlib import import_module
from types import CoroutineType
from typing import Any

from loopscope.sources.children import ChildSteps, ForeignSteps
from loopscope.sources.exchange import Exchange
from loopscope.sources.factory import TaskFactory
from loopscope.sources.ledger import CURRENT, Claim, Ledger


class Endless(Exchange):
    """A request that never ends and follows every task."""

    def __init__(self) -> None:
        self.steps = self.pending = None
        self.now = time.perf_counter
        self.step_started = 0.0
        self.suspended = self.now()
        self.ledger = Ledger()
        self.followed = 0

    def is_under_way(self) -> bool:
        return True

    def adopt(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        assert self.ledger is not None
        self.followed += 1
        kind = ChildSteps if isinstance(coroutine, CoroutineType) else ForeignSteps
        return kind(coroutine, self, self.ledger)


def install(exchange: Endless) -> None:
    """Have every new loop make its tasks through our factory."""
    original = asyncio.BaseEventLoop.__init__

    def init(loop: asyncio.BaseEventLoop, *arguments: Any, **options: Any) -> None:
        original(loop, *arguments, **options)
        TaskFactory(loop).install()

    asyncio.BaseEventLoop.__init__ = init  # type: ignore[method-assign, assignment]
    CURRENT.set(Claim(exchange))


def main() -> None:
    """Run it; the exit code is the suite's."""
    run = import_module("test.libregrtest.main").main  # not in every installation
    arguments = [each for each in sys.argv[1:] if each != "--bare"]
    exchange = Endless()
    if "--bare" not in sys.argv:
        install(exchange)
    sys.argv = ["test", *(arguments or ["test_asyncio"])]
    try:
        run()
    finally:
        print("tasks followed:", exchange.followed, file=sys.stderr)


if __name__ == "__main__":
    main()
