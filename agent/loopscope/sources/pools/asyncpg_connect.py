"""asyncpg's connections that are made without a pool.

``asyncpg.connect`` is replaced wherever the library has it, and so is what it calls, for services
that have imported it before: there a timeout looks like being cancelled. A connection ends in its
``_cleanup``, however it does: closed, terminated, or lost.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import making
from loopscope.sources.pools.asyncpg import address
from loopscope.sources.pools.unpooled import Unpooled


class AsyncpgConnectAdapter(Unpooled):
    """Measures ``asyncpg.connect``."""

    module = "asyncpg"
    kind = "db.asyncpg"

    def patch(self, module: ModuleType) -> None:
        library: Any = module
        connecting = self._connecting(library.connect)
        for owner in (module, library.connection):
            self.keep(Patch(owner, "connect", lambda _: connecting))
        self.keep(Patch(library.connect_utils, "_connect", self._connecting))
        self.keep(Patch(library.connection.Connection, "_cleanup", self._cleaning_up))

    def address_of(self, dsn: Any = None, **keywords: Any) -> str:
        return address(dsn, keywords)

    def _connecting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def connect(*arguments: Any, **keywords: Any) -> Any:
            use = self.connects(arguments, keywords)
            if use is None:
                return await original(*arguments, **keywords)
            try:
                with making():
                    connection = await original(*arguments, **keywords)
            except BaseException as error:
                use.failed(error)
                raise
            self.connected(use, connection)
            return connection

        return connect

    def _cleaning_up(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def _cleanup(connection: Any) -> Any:
            self.disconnected(connection)
            return original(connection)

        return _cleanup
