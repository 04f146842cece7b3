"""asyncpg's connections that are made without a pool.

``asyncpg.connect`` is replaced wherever the library has it, and so is what it calls, for services
that have imported it before: there a timeout looks like being cancelled. A connection ends in its
``_cleanup``, however it does: closed, terminated, or lost.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.asyncpg import address
from loopscope.sources.pools.unpooled import Unpooled


class AsyncpgConnectAdapter(Unpooled):
    """Measures ``asyncpg.connect``."""

    module = "asyncpg"
    kind = "db.asyncpg"

    def patch(self, module: ModuleType) -> None:
        library: Any = module
        connecting = self.connecting(library.connect)
        for owner in (module, library.connection):
            self.keep(Patch(owner, "connect", lambda _: connecting))
        self.keep(Patch(library.connect_utils, "_connect", self.connecting))
        self.keep(Patch(library.connection.Connection, "_cleanup", self.disconnecting))

    def address_of(self, dsn: Any = None, **keywords: Any) -> str:
        return address(dsn, keywords)
