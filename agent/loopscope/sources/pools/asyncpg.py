"""asyncpg's pool.

Everything takes a connection through ``Pool._acquire`` (``pool.fetch`` and the like as well), and
gives it back through its holder's ``_release``, which also sees connections that were closed while
in use. Both are replaced on the class. A pool of asyncpg's has no room for a mark and cannot be
referred to weakly, so the class itself is replaced by a subclass that has and can: pools made after
that are measured, those made before are not. ``type(pool) is asyncpg.Pool`` stays true, and
``isinstance`` does for both.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from loopscope.core.patch import Patch
from loopscope.sources.chores import Chore
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.meter import Level


def address(dsn: Any, given: dict[str, Any]) -> str:
    """``host:port/database`` of what asyncpg is given; "" where it is left to find out."""
    parts = urlsplit(dsn if isinstance(dsn, str) else "")
    host = given.get("host") or parts.hostname or ""
    port = given.get("port") or parts.port or ""
    database = given.get("database") or parts.path.strip("/")
    place = f"{host}:{port}" if port else str(host)
    return f"{place}/{database}".strip("/")


class AsyncpgAdapter(Adapter):
    """Measures ``asyncpg.Pool``."""

    module = "asyncpg"
    kind = "db.asyncpg"

    def patch(self, module: ModuleType) -> None:
        pools: Any = module.pool
        original = pools.Pool
        self.keep(Patch(original, "_acquire", partial(self.acquiring, thing=_holder_of)))
        self.keep(Patch(original, "_get_new_connection", self.opening))
        self.keep(Patch(pools.PoolConnectionHolder, "_release", self._releasing))
        self.keep(Chore(pools.PoolConnectionHolder, "release"))

        class Pool(original):  # type: ignore[misc, valid-type]
            __doc__ = original.__doc__

        Pool.__module__, Pool.__qualname__ = original.__module__, original.__qualname__
        for owner in (pools, module):
            self.keep(Patch(owner, "Pool", lambda _: Pool))

    def name_of(self, pool: Any) -> str:
        given: dict[str, Any] = dict(pool._connect_kwargs)  # noqa: SLF001
        dsn = next(iter(pool._connect_args), None) or given.get("dsn")  # noqa: SLF001
        return address(dsn, given) or "asyncpg"

    def level_of(self, pool: Any) -> Level | None:
        if pool._closed:  # noqa: SLF001
            return None
        return Level(capacity=pool.get_max_size(), idle=pool.get_idle_size())

    def _releasing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def _release(holder: Any) -> Any:
            self.gave_back(holder)
            return original(holder)

        return _release


def _holder_of(connection: Any) -> object:
    """What a pool has for a connection, be that open or not."""
    return getattr(connection, "_holder", None)
