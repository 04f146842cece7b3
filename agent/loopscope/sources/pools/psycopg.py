"""psycopg's pools, with an event loop and without.

Everything takes a connection through ``getconn`` and gives it back through ``putconn``
(``connection()`` and ``close_returns`` as well). Both are replaced on the classes, which the null
pools inherit from: pools made before are measured too. In a pool, connections are made by tasks or
threads of its own, in nobody's name; in a null pool, by whoever wants one.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import Adapter
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
            (pool, "getconn", self.acquiring),
            (pool, "putconn", self.releasing),
            (pool, "_connect", self.opening),
            (async_pool, "getconn", self.acquiring),
            (async_pool, "putconn", self.releasing),
            (async_pool, "_connect", self.opening),
        ):
            self.keep(Patch(owner, name, make))

    def name_of(self, pool: Any) -> str:
        conninfo: str | None = None if callable(pool.conninfo) else pool.conninfo
        known: dict[str, Any] | None = None if callable(pool.kwargs) else pool.kwargs
        return address(conninfo or "", **(known or {})) or str(pool.name)

    def level_of(self, pool: Any) -> Level | None:
        if pool.closed and getattr(pool, "_opened", True):  # it is closed before it is opened, too
            return None
        stats = pool.get_stats()
        return Level(capacity=stats["pool_max"] or None, idle=stats["pool_available"])
