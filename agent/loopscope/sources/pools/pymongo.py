"""pymongo's pools: one for each server that a client knows, in coroutines, in threads, in Motor.

Everything takes a connection through ``Pool._get_conn`` and gives it back through ``checkin``; both
are replaced on the class, so clients that were there before are measured as well. pymongo's own
events would tell the same with a listener for each client, and for more: a client that has one
makes an event object of every step, and somebody who is cancelled while waiting is never heard of
again.

A pool is called after its server alone: one pool serves all databases. The pools that monitor a
server are left out.
"""

from __future__ import annotations

from functools import partial
from math import isinf
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.meter import Level


class PymongoAdapter(Adapter):
    """Measures ``pymongo.asynchronous.pool.Pool`` and its twin for threads."""

    module = "pymongo"
    kind = "db.mongodb"

    def patch(self, module: ModuleType) -> None:
        library: Any = module
        for pool in (library.asynchronous.pool.Pool, library.synchronous.pool.Pool):
            self.keep(Patch(pool, "_get_conn", partial(self.acquiring, skips=_is_monitors)))
            self.keep(Patch(pool, "checkin", self.releasing))
            self.keep(Patch(pool, "connect", partial(self.opening, skips=_is_monitors)))
            self.keep(Patch(pool, "close", self.closing))

    def name_of(self, pool: Any) -> str:
        host, port = pool.address
        return f"{host}:{port}" if port else str(host)  # without a port it is a unix socket

    def level_of(self, pool: Any) -> Level:
        limit = pool.max_pool_size
        return Level(capacity=None if isinf(limit) else limit, idle=len(pool.conns))


def _is_monitors(pool: Any) -> bool:
    """Whether it is not for anybody's queries, but for looking after the server."""
    return bool(getattr(pool, "is_sdam", False))
