"""asyncpg's pool.

Everything takes a connection through ``Pool._acquire`` (``pool.fetch`` and the like as well), and
gives it back through its holder's ``_release``, which also sees connections that were closed while
in use. Both are replaced on the class. A pool of asyncpg's has no room for a mark and cannot be
referred to weakly, so the class itself is replaced by a subclass that has and can: pools made after
that are measured, those made before are not. ``type(pool) is asyncpg.Pool`` stays true, and
``isinstance`` does for both.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import wraps
from time import perf_counter
from types import ModuleType
from typing import Any, Final
from urllib.parse import urlsplit

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.meter import Meter, Use

KIND: Final = "db.asyncpg"

_METER = "loopscope_meter"
_USES = "loopscope_uses"


class AsyncpgAdapter(Adapter):
    """Measures ``asyncpg.Pool``."""

    module = "asyncpg"

    def patch(self, module: ModuleType) -> None:
        pools: Any = module.pool
        original = pools.Pool
        self.keep(Patch(original, "_acquire", self._acquiring))
        self.keep(Patch(original, "_get_new_connection", self._connecting))
        self.keep(Patch(pools.PoolConnectionHolder, "_release", self._releasing))

        class Pool(original):  # type: ignore[misc, valid-type]
            __doc__ = original.__doc__

        Pool.__module__, Pool.__qualname__ = original.__module__, original.__qualname__
        for owner in (pools, module):
            self.keep(Patch(owner, "Pool", lambda _: Pool))

    def _acquiring(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def _acquire(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            use = self.ask(lambda: self._meter(pool))
            if use is None:
                return await original(pool, *arguments, **keywords)
            try:
                connection = await original(pool, *arguments, **keywords)
            except BaseException as error:
                use.failed(error)
                raise
            self.safely(lambda: _take(connection, use))
            return connection

        return _acquire

    def _releasing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def _release(holder: Any) -> Any:
            self.safely(lambda: _give_back(holder))
            return original(holder)

        return _release

    def _connecting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        async def _get_new_connection(pool: Any) -> Any:
            began = perf_counter()
            connection = await original(pool)
            self.safely(lambda: self._created(pool, perf_counter() - began))
            return connection

        return _get_new_connection

    def _created(self, pool: Any, seconds: float) -> None:
        meter = self._meter(pool)
        if meter is not None:
            meter.over("create", seconds, None)

    def _meter(self, pool: Any) -> Meter | None:
        """The meter of ``pool``; None for one that was made before us."""
        attributes: dict[str, Any] | None = getattr(pool, "__dict__", None)
        if attributes is None:
            return None
        meter: Meter | None = attributes.get(_METER)
        if meter is None or meter.book is not self.book:
            there = weakref.ref(pool)
            attributes[_USES] = {}
            meter = attributes[_METER] = self.book.meter(
                pool,
                _name(pool),
                KIND,
                lambda: _asked(there(), "get_max_size"),
                lambda: _asked(there(), "get_idle_size"),
            )
        return meter


def _take(connection: Any, use: Use) -> None:
    use.got()
    holder = connection._holder  # noqa: SLF001
    holder._pool.__dict__[_USES][id(holder)] = use  # noqa: SLF001


def _give_back(holder: Any) -> None:
    uses: dict[int, Use] = getattr(holder._pool, "__dict__", {}).get(_USES, {})  # noqa: SLF001
    use = uses.pop(id(holder), None)
    if use is not None:
        use.release()


def _asked(pool: Any, method: str) -> float | None:
    return None if pool is None else float(getattr(pool, method)())


def _name(pool: Any) -> str:
    """Host, port and database as far as they were given; never who connects, nor how."""
    given: dict[str, Any] = dict(pool._connect_kwargs)  # noqa: SLF001
    dsn = next(iter(pool._connect_args), None) or given.get("dsn")  # noqa: SLF001
    address = urlsplit(dsn) if isinstance(dsn, str) else urlsplit("")
    host = given.get("host") or address.hostname or ""
    port = given.get("port") or address.port or ""
    database = given.get("database") or address.path.strip("/")
    place = f"{host}:{port}" if port else str(host)
    return f"{place}/{database}".strip("/") or "asyncpg"
