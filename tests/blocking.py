"""What our own code may not do on a service's event loop: block it.

blockbuster makes what may block raise, wherever a loop is running and our code is on the stack. It
is narrowed down in three ways.

- The files that drive the application's coroutine are under everything the application does, so
  what they call themselves is not looked at: ``asgi.py``, ``exchange.py`` and the like, and those
  that stand in for a library's functions. Whatever they call of ours is.
- The loop of our admin thread is ours alone; whoever waits there waits for figures.
- Starting and stopping may do what cannot be done elsewhere. Each exception says why it is one.
"""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from types import FrameType

import coverage
from blockbuster import BlockBuster, BlockBusterFunction

import loopscope.asgi
import loopscope.sources.children
import loopscope.sources.exchange
import loopscope.sources.factory
import loopscope.sources.pools.adapter
import loopscope.sources.pools.clients
import loopscope.sources.pools.unpooled
from loopscope.sources.pools.source import ADAPTERS

_DRIVERS = [
    loopscope.asgi,
    loopscope.sources.children,
    loopscope.sources.exchange,
    loopscope.sources.factory,
    loopscope.sources.pools.adapter,
    loopscope.sources.pools.clients,
    loopscope.sources.pools.unpooled,
    *(sys.modules[adapter.__module__] for adapter in ADAPTERS),
]

ALLOWED: dict[tuple[str, str], str] = {
    ("loopscope/admin/listener.py", "_run"): "the admin thread's own loop, which no service is on",
    ("loopscope/agent.py", "_make_page"): "a page says from its first byte whose it is",
    ("loopscope/agent.py", "_make_tracer"): "the SDK makes a provider so; only with OTLP, and once",
    ("loopscope/core/stacks.py", "_working_directory"): "servers may change it once they run",
    ("loopscope/agent.py", "stop"): "the last application has ended: nobody is left to wait",
    ("threading.py", "start"): "a thread is started within microseconds, and Python waits for that",
    ("tests/harness.py", "scraped"): "a test reads figures where it stands",
}
"""Functions that may block, by file, and why."""


def let_coverage_lock() -> None:
    """Give whoever measures coverage a lock that is not watched.

    It is taken wherever a function of ours is called. Nothing follows from that, but that half of
    what the tests took went into watching it.
    """
    measuring = coverage.Coverage.current()
    collector = None if measuring is None else measuring._collector
    if collector is not None:
        collector.data_lock = RLock()


class _Files(dict[str, tuple[bool, frozenset[str]]]):
    """By the name of a file: whether its code is ours to answer for, and what in it may block."""

    def __missing__(self, name: str) -> tuple[bool, frozenset[str]]:
        allowed = frozenset(function for file, function in ALLOWED if name.endswith(file))
        self[name] = found = (name.startswith(_PACKAGE) and name not in _DRIVEN_BY, allowed)
        return found


_PACKAGE = str(Path(loopscope.__file__).parent)
_DRIVEN_BY = {str(driver.__file__) for driver in _DRIVERS}
_files = _Files()


def _may_block() -> bool:
    """Whether whoever calls may block, for all we know.

    blockbuster would find the same, ten times as slowly: it compares each frame of the stack with
    each name there is.
    """
    frame: FrameType | None = sys._getframe()
    is_ours = False
    while frame is not None:
        code = frame.f_code
        answers, allowed = _files[code.co_filename]
        if code.co_name in allowed:
            return True
        is_ours = is_ours or answers
        frame = frame.f_back
    return not is_ours


def _unless_ours(is_harmless: Callable[..., bool]) -> Callable[..., bool]:
    """True of a call that ``is_harmless``, or is somebody else's."""
    return lambda *arguments, **named: is_harmless(*arguments, **named) or _may_block()


@contextmanager
def no_blocking() -> Iterator[None]:
    """Raise ``BlockingError`` where our code blocks a running loop."""
    watch = BlockBuster(loopscope, excluded_modules=_DRIVERS)
    for module, name in ((builtins, "open"), (os, "open"), (os, "lstat")):
        watch.functions[f"{module.__name__}.{name}"] = BlockBusterFunction(
            module, name, scanned_modules=loopscope, excluded_modules=_DRIVERS
        )
    for function in watch.functions.values():
        function.can_block_predicate = _unless_ours(function.can_block_predicate)
    watch.activate()
    try:
        yield
    finally:
        watch.deactivate()
