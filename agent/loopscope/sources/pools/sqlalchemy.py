"""SQLAlchemy's pools: of engines and of asyncio engines, whatever driver they use.

Everything takes a connection through ``Pool.connect``, which only returns once there is an open
one, pinged or made anew if need be. It comes back through ``Pool._return_conn``; one that leaves
the pool while in use (detached, or an asyncio engine's that was garbage) through ``detach``. All of
them are replaced on classes, and reach engines made before and pools made by ``dispose``. Events
would do as well, but there is none for who begins to wait, and each costs more than a wrapper; a
listener for checkouts would have every checkout take a longer way.

With ``NullPool`` each use makes a connection, which shows in who made how many; it has no capacity.
``StaticPool`` and ``SingletonThreadPool`` are left out: nobody ever waits for either, and what they
hold is used by several at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import PurePath
from types import FrameType, ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.meter import Level

_MOST_FRAMES = 50
"""How far out the engine that asks is looked for."""
_POOL = "_ConnectionRecord__pool"
"""What a record calls its pool."""


class SqlalchemyAdapter(Adapter):
    """Measures ``sqlalchemy.pool.Pool`` where somebody may have to wait or to connect for it."""

    module = "sqlalchemy"
    kind = "db.sqlalchemy"

    def patch(self, module: ModuleType) -> None:
        pools: Any = module.pool  # pyright: ignore[reportAttributeAccessIssue]
        self._engine: Any = module.engine.Engine  # pyright: ignore[reportAttributeAccessIssue]
        self._queued: Any = pools.QueuePool
        self._shared: tuple[Any, ...] = (pools.StaticPool, pools.SingletonThreadPool)
        base: Any = pools.base
        acquiring = partial(self.acquiring, thing=_record_of, skips=self._is_shared)
        self.keep(Patch(base.Pool, "connect", acquiring))
        self.keep(Patch(base.Pool, "_return_conn", self.releasing))
        self.keep(Patch(base._ConnectionFairy, "detach", self._detaching))  # noqa: SLF001
        opening = partial(self.opening, pool_of=self._pool_of)
        self.keep(Patch(base._ConnectionRecord, "_ConnectionRecord__connect", opening))  # noqa: SLF001

    def _is_shared(self, pool: Any) -> bool:
        """Whether everybody gets the same, and nobody waits."""
        return isinstance(pool, self._shared)

    def _pool_of(self, record: Any) -> Any:
        """Whose a record is; None where that is not measured."""
        pool = getattr(record, _POOL, None)
        return None if self._is_shared(pool) else pool

    def name_of(self, pool: Any) -> str:
        """As the engine says that has just asked: its pool knows nothing of where it leads."""
        url = self._url_of(pool)
        if url is None:
            return "sqlalchemy"
        if not url.host:
            return PurePath(url.database or "").name or url.get_backend_name()
        place = f"{url.host}:{url.port}" if url.port else str(url.host)
        return f"{place}/{url.database}" if url.database else place

    def level_of(self, pool: Any) -> Level:
        if not isinstance(pool, self._queued):
            return Level()
        unlimited = pool._max_overflow < 0  # noqa: SLF001
        capacity = None if unlimited else pool.size() + pool._max_overflow  # noqa: SLF001
        # The queue of an asyncio pool is made by the first to ask, who should not be us.
        is_there = not pool._is_asyncio or "_queue" in vars(pool._pool)  # noqa: SLF001
        return Level(capacity=capacity, idle=pool.checkedin() if is_there else 0)

    def _url_of(self, pool: Any) -> Any:
        """The URL of the engine of ``pool``, somewhere on this stack; None without any."""
        frame: FrameType | None = sys._getframe(2)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        for _ in range(_MOST_FRAMES):
            if frame is None:
                break
            asks: Any = frame.f_locals.get("self")
            if issubclass(type(asks), self._engine) and asks.pool is pool:
                return asks.url
            frame = frame.f_back
        return None

    def _detaching(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def detach(connection: Any) -> Any:
            self.gave_back(_record_of(connection))
            return original(connection)

        return detach


def _record_of(connection: Any) -> object:
    """What a pool keeps of a connection while somebody has it."""
    return getattr(connection, "_connection_record", None)
