"""psycopg's pools, with an event loop and without.

Everything takes a connection through ``getconn`` and gives it back through ``putconn``
(``connection()`` and ``close_returns`` as well). Both are replaced on the classes, which the null
pools inherit from: pools made before are measured too. In a pool, connections are made by tasks or
threads of its own, in nobody's name; in a null pool, by whoever wants one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import Adapter, making
from loopscope.sources.pools.meter import Level
from loopscope.sources.pools.psycopg_connect import address


class PsycopgAdapter(Adapter):
    """Measures ``psycopg_pool.ConnectionPool``, ``AsyncConnectionPool`` and their null pools."""

    module = "psycopg_pool"
    kind = "db.psycopg"

    def patch(self, module: ModuleType) -> None:
        pool: Any = module.ConnectionPool
        async_pool: Any = module.AsyncConnectionPool
        for owner, name, make in (
            (pool, "getconn", self._acquiring),
            (pool, "putconn", self._releasing),
            (pool, "_connect", self._connecting),
            (async_pool, "getconn", self._acquiring_async),
            (async_pool, "putconn", self._releasing_async),
            (async_pool, "_connect", self._connecting_async),
        ):
            self.keep(Patch(owner, name, make))

    def name_of(self, pool: Any) -> str:
        conninfo: str | None = None if callable(pool.conninfo) else pool.conninfo
        known: dict[str, Any] | None = None if callable(pool.kwargs) else pool.kwargs
        return address(conninfo or "", **(known or {})) or str(pool.name)

    def level_of(self, pool: Any) -> Level:
        stats = pool.get_stats()
        return Level(capacity=stats["pool_max"] or None, idle=stats["pool_available"])

    def _acquiring(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def getconn(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            use = self.ask(pool)
            if use is None:
                return original(pool, *arguments, **keywords)
            try:
                connection = original(pool, *arguments, **keywords)
            except BaseException as error:
                use.failed(error)
                raise
            self.took(use, connection)
            return connection

        return getconn

    def _acquiring_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def getconn(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            use = self.ask(pool)
            if use is None:
                return await original(pool, *arguments, **keywords)
            try:
                connection = await original(pool, *arguments, **keywords)
            except BaseException as error:
                use.failed(error)
                raise
            self.took(use, connection)
            return connection

        return getconn

    def _releasing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def putconn(pool: Any, conn: Any) -> Any:
            self.gave_back(conn)
            return original(pool, conn)

        return putconn

    def _releasing_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def putconn(pool: Any, conn: Any) -> Any:
            self.gave_back(conn)
            return await original(pool, conn)

        return putconn

    def _connecting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def _connect(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            began = self.book.now()
            with making():
                connection = original(pool, *arguments, **keywords)
            self.opened(pool, began)
            return connection

        return _connect

    def _connecting_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def _connect(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            began = self.book.now()
            with making():
                connection = await original(pool, *arguments, **keywords)
            self.opened(pool, began)
            return connection

        return _connect
