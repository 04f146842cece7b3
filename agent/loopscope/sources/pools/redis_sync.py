"""The pools of redis' synchronous half, as endpoints in threads use it.

As in ``redis.asyncio`` there is one pool that refuses and one that has callers wait, but here that
one does everything itself, and keeps what is idle in a queue.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.redis import RedisPools, check_version, connect_of, reason


class RedisSyncAdapter(RedisPools):
    """Measures ``redis.ConnectionPool`` and its children."""

    def patch(self, module: ModuleType) -> None:
        check_version(module)
        library: Any = module.connection
        for pool in (library.ConnectionPool, library.BlockingConnectionPool):
            self.keep(Patch(pool, "get_connection", partial(self.acquiring, reason=reason)))
            self.keep(Patch(pool, "release", self.releasing))
            self.keep(Patch(pool, "make_connection", self.marking))
        connection = library.AbstractConnection
        opening = partial(self.opening, pool_of=self.pool_of, skips=self.is_connected)
        self.keep(Patch(connection, connect_of(connection), opening))
        self.keep(Patch(connection, "register_connect_callback", self.subscribing))

    def idle_in(self, pool: Any) -> Iterable[Any]:
        queue = getattr(pool, "pool", None)
        if queue is None:
            return tuple(pool._available_connections)  # noqa: SLF001
        return filter(None, tuple(queue.queue))

    def is_connected(self, connection: Any) -> bool:
        inner: Any = getattr(connection, "_conn", connection)  # of one that caches
        return bool(inner._sock)  # noqa: SLF001
