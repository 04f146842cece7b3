"""psycopg's connections that are made without a pool, with an event loop and without.

``connect`` is a classmethod of either kind of connection, replaced on both. ``psycopg.connect`` is
one of them, bound when the library was loaded, so it is replaced by what that is now; where a
service has imported that very function before, its connections are not seen. They end with
``close``, which leaving their block calls, or as garbage; a connection that breaks is in use until
whoever has it lets go of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import making
from loopscope.sources.pools.unpooled import Unpooled


def address(conninfo: str = "", **given: Any) -> str:
    """``host:port/database`` of what libpq is given; "" where it is left to find out."""
    library: Any = sys.modules["psycopg.conninfo"]
    known: dict[str, Any] = library.conninfo_to_dict(conninfo)
    host, port, database = (
        str(given.get(name) or known.get(name) or "") for name in ("host", "port", "dbname")
    )
    place = "" if host.startswith("/") else host  # a directory: a socket of this machine's
    if place and port:
        place = f"{place}:{port}"
    return f"{place}/{database}".strip("/")


class PsycopgConnectAdapter(Unpooled):
    """Measures ``psycopg.connect`` and ``psycopg.AsyncConnection.connect``."""

    module = "psycopg"
    kind = "db.psycopg"

    def patch(self, module: ModuleType) -> None:
        connection: Any = module.Connection
        async_connection: Any = module.AsyncConnection
        self.keep(Patch(connection, "connect", self._connecting))
        self.keep(Patch(async_connection, "connect", self._connecting_async))
        self.keep(Patch(connection, "close", self._closing))
        self.keep(Patch(async_connection, "close", self._closing_async))
        self.keep(Patch(module, "connect", lambda _: connection.connect))

    def address_of(self, conninfo: str = "", *_: Any, **keywords: Any) -> str:
        return address(conninfo, **keywords)

    def _connecting(self, original: Any) -> Any:
        plain: Callable[..., Any] = original.__func__

        @wraps(plain)
        def connect(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            use = self.connects(arguments, keywords)
            if use is None:
                return plain(cls, *arguments, **keywords)
            try:
                with making():
                    connection = plain(cls, *arguments, **keywords)
            except BaseException as error:
                use.failed(error)
                raise
            self.connected(use, connection)
            return connection

        return classmethod(connect)

    def _connecting_async(self, original: Any) -> Any:
        plain: Callable[..., Any] = original.__func__

        @wraps(plain)
        async def connect(cls: Any, *arguments: Any, **keywords: Any) -> Any:
            use = self.connects(arguments, keywords)
            if use is None:
                return await plain(cls, *arguments, **keywords)
            try:
                with making():
                    connection = await plain(cls, *arguments, **keywords)
            except BaseException as error:
                use.failed(error)
                raise
            self.connected(use, connection)
            return connection

        return classmethod(connect)

    def _closing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def close(connection: Any) -> Any:
            self.disconnected(connection)
            return original(connection)

        return close

    def _closing_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def close(connection: Any) -> Any:
            self.disconnected(connection)
            return await original(connection)

        return close
