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
from collections.abc import Iterator
from contextlib import contextmanager

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
    ("coverage/collector.py", "lock_data"): "whoever measures coverage comes in anywhere",
    ("tests/harness.py", "scraped"): "a test reads figures where it stands",
}
"""Functions that may block, by file, and why."""


@contextmanager
def no_blocking() -> Iterator[None]:
    """Raise ``BlockingError`` where our code blocks a running loop."""
    watch = BlockBuster(loopscope, excluded_modules=_DRIVERS)
    for module, name in ((builtins, "open"), (os, "open"), (os, "lstat")):
        watch.functions[f"{module.__name__}.{name}"] = BlockBusterFunction(
            module, name, scanned_modules=loopscope, excluded_modules=_DRIVERS
        )
    for function in watch.functions.values():
        for file, name in ALLOWED:
            function.can_block_in(file, name)
    watch.activate()
    try:
        yield
    finally:
        watch.deactivate()
