"""psycopg's connections that are made without a pool, with an event loop and without.

``connect`` is a classmethod of either kind of connection, replaced on both. ``psycopg.connect`` is
one of them, bound when the library was loaded, so it is replaced by what that is now; where a
service has imported that very function before, its connections are not seen. They end with
``close``, which leaving their block calls, or as garbage; a connection that breaks is in use until
whoever has it lets go of it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
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
        for each in (connection, async_connection):
            self.keep(Patch(each, "connect", self._connecting))
            self.keep(Patch(each, "close", self.disconnecting))
        self.keep(Patch(module, "connect", lambda _: connection.connect))

    def address_of(self, _: type, conninfo: str = "", *__: Any, **keywords: Any) -> str:
        return address(conninfo, **keywords)

    def _connecting(self, original: Any) -> Any:
        return classmethod(self.connecting(original.__func__))
