"""aiomysql's pool, and connections made without it.

Everything takes a connection through ``Pool._acquire`` and gives it back through ``Pool.release``,
SQLAlchemy-like engines (``aiomysql.sa``) included. What is new in a pool is made while that fills
itself, with the pool's lock held: all who ask wait for one slow connect.

Whoever connects, and connects anew, ends up in ``Connection._connect``. What a pool was filling
itself with there belongs to it from then on; any other is one without a pool.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from pathlib import PurePath
from types import ModuleType
from typing import Any
from weakref import ref

from loopscope.core.patch import Patch
from loopscope.sources.chores import Chore
from loopscope.sources.pools.meter import Level
from loopscope.sources.pools.unpooled import Unpooled

_FILLING: ContextVar[ref[Any] | None] = ContextVar("loopscope_filling", default=None)
"""The pool that connects right now. Weakly: transports keep the context they are made in."""


class AiomysqlAdapter(Unpooled):
    """Measures ``aiomysql.Pool``, and ``aiomysql.connect``."""

    module = "aiomysql"
    kind = "db.aiomysql"

    def patch(self, module: ModuleType) -> None:
        pool, connection = module.Pool, module.Connection
        self.keep(Patch(pool, "_acquire", self.acquiring))
        self.keep(Patch(pool, "release", self.releasing))
        self.keep(Chore(pool, "_wakeup"))
        self.keep(Patch(pool, "_fill_free_pool", self._filling))
        self.keep(Patch(connection, "_connect", self._connecting))
        self.keep(Patch(connection, "close", self.disconnecting))

    def name_of(self, pool: Any) -> str:
        given: dict[str, Any] = pool._conn_kwargs  # noqa: SLF001
        host, port = given.get("host", "localhost"), given.get("port", 3306)
        return _name(given.get("unix_socket"), host, port, given.get("db"))

    def address_of(self, *arguments: Any, **keywords: Any) -> str:
        (connection,) = arguments
        return _name(connection.unix_socket, connection.host, connection.port, connection.db)

    def level_of(self, pool: Any) -> Level | None:
        if pool.closed:
            return None
        return Level(capacity=pool.maxsize, idle=pool.freesize)

    def _filling(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def _fill_free_pool(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            _FILLING.set(ref(pool))
            try:
                return await original(pool, *arguments, **keywords)
            finally:
                _FILLING.set(None)

        return _fill_free_pool

    def _connecting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def _connect(connection: Any, *arguments: Any, **keywords: Any) -> Any:
            filling = _FILLING.get()
            pool = self.pool_of(connection) if filling is None else filling()
            if pool is not None:
                began = self.book.now()
                result = await original(connection, *arguments, **keywords)
                self.belongs(connection, pool)
                self.opened(pool, began)
                return result
            self.disconnected(connection)  # which may have been lost without anybody saying so
            use = self.connects((connection,), {})
            if use is None:
                return await original(connection, *arguments, **keywords)
            try:
                result = await original(connection, *arguments, **keywords)
            except BaseException as error:
                self.failed(use, error)
                raise
            self.connected(use, connection)
            return result

        return _connect


def _name(socket: str | None, host: str, port: int, database: str | None) -> str:
    place = PurePath(socket).name if socket else f"{host}:{port}"
    return f"{place}/{database or ''}".rstrip("/")
