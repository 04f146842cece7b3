"""uvicorn's connections, and those it turned away because of ``--limit-concurrency``.

From that many connections on, idle ones among them, uvicorn answers every request with 503. No
application and no middleware ever hears of those requests. As the connection of the request counts
as well, one less is what can be used: so much is the capacity. Without a limit there is none, and
what is in use is worth knowing all the same.

A server shows itself ten times a second, when it asks itself in ``on_tick`` whether to go on. That
is the one place that every running ``Server`` comes by, however it was started, by whom, and
whether the application was imported before or after: command line, ``--workers``, gunicorn's
worker, a thread of somebody's own.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from functools import partial, wraps
from types import ModuleType
from typing import Any, Final

from loopscope.core.faults import Faults
from loopscope.core.patch import Patch
from loopscope.sources.pools.accept_queue import written
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.meter import Level, Meter

_REFUSING: Final = "service_unavailable"
_PROTOCOLS: Final = ("h11_impl", "httptools_impl", "zttp_impl", "zttp_h2_impl")
"""The modules that answer 503, each with a name of its own for the application that does so."""


class UvicornAdapter(Adapter):
    """Watches every ``uvicorn.Server`` that runs."""

    module = "uvicorn"
    kind = "listener"

    def __init__(self, book: PoolBook, faults: Faults) -> None:
        super().__init__(book, faults)
        self._refusing: set[str] = set()
        self._servers: weakref.WeakKeyDictionary[Any, Meter] = weakref.WeakKeyDictionary()
        """By the state that a server shares with its connections."""

    def patch(self, module: ModuleType) -> None:
        self.keep(Patch(vars(module)["Server"], "on_tick", self._ticking))

    def _ticking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def on_tick(server: Any, *arguments: Any, **keywords: Any) -> Any:
            if self._is_on:
                self.safely(lambda: self._meet(server))
            return original(server, *arguments, **keywords)

        return on_tick

    def _meet(self, server: Any) -> None:
        state = server.server_state
        if state not in self._servers:
            self._watch_refusals()
            there = weakref.ref(server)
            level = partial(self._level, there)
            self._servers[state] = self.book.watch(_name(server), self.kind, level)

    def _level(self, there: Callable[[], Any]) -> Level | None:
        """How many are connected; None once the server has shut down."""
        server = there()
        if server is None:
            return None
        connections = len(server.server_state.connections)
        if not connections and not any(each.is_serving() for each in server.servers):
            self._servers.pop(server.server_state, None)  # it may be started again
            return None
        limit = server.config.limit_concurrency
        return Level(None if limit is None else max(0.0, limit - 1), in_use=connections)

    def _watch_refusals(self) -> None:
        """Which protocols are in use is known once there is a server."""
        for name in _PROTOCOLS:
            module = sys.modules.get(f"uvicorn.protocols.http.{name}")
            if module is not None and name not in self._refusing:
                self._refusing.add(name)
                self.keep(Patch(module, _REFUSING, self._refusals))

    def _refusals(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def service_unavailable(scope: Any, receive: Any, send: Any) -> None:
            if self._is_on:
                self.safely(lambda: self._refused(send))
            await original(scope, receive, send)

        return service_unavailable

    def _refused(self, send: Any) -> None:
        protocol = send.__self__.on_response.__self__
        server = self._servers.get(protocol.server_state)
        if server is not None:
            server.rejected(1)


def _name(server: Any) -> str:
    listening = [each for one in server.servers for each in one.sockets]
    address = written(listening[0].getsockname()) if listening else ""
    return f"uvicorn {address}".strip()
