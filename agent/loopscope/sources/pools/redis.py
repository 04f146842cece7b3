"""The pools of ``redis.asyncio``: the plain one, which refuses, and the one that has callers wait.

Clients, pipelines and subscriptions take connections by ``get_connection``, of which each class has
its own, and give them back by ``release``, which the waiting pool passes on to the plain one's once
it has its lock. A connection does not know its pool, so it gets a mark when the pool makes it; it
may lose its server at any time, and connects anew in the middle of a command.

A sentinel's pools are such pools. Nodes of an asynchronous cluster have none: not measured. Those
of a synchronous one have a client each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial, wraps
from pathlib import PurePath
from queue import Empty
from types import ModuleType
from typing import Any, Final

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.meter import Level

_OLDEST: Final = 5
"""The first major version whose waiting pool gives back as today's does."""
_UNLIMITED: Final = 2**31
"""What older versions say where nobody has said how many."""
_IN_VAIN: Final = (Empty, TimeoutError)
"""What ends the wait for a connection, in threads and on a loop."""


class RedisPools(Adapter):
    """What the pools of both halves of the library have in common."""

    module = "redis"
    kind = "cache.redis"

    def name_of(self, pool: Any) -> str:
        given: dict[str, Any] = pool.connection_kwargs
        database = given.get("db") or 0
        service = getattr(pool, "service_name", None)
        if service is not None:  # a sentinel knows where that is by now
            return f"{service}/{database}"
        if "path" in given:
            return f"{PurePath(given['path']).name}/{database}"
        return f"{given.get('host', 'localhost')}:{given.get('port', 6379)}/{database}"

    def level_of(self, pool: Any) -> Level:
        idle = sum(map(self.is_connected, self.idle_in(pool)))
        limit = pool.max_connections
        return Level(capacity=limit if limit < _UNLIMITED else None, idle=idle)

    def idle_in(self, pool: Any) -> Iterable[Any]:
        """What is in ``pool`` and not in use, connected or not. From any thread."""
        return tuple(pool._available_connections)  # noqa: SLF001

    def is_connected(self, connection: Any) -> bool:
        """Whether there is a socket: pools keep connections that have lost theirs."""
        return bool(connection.is_connected)

    def marking(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``make_connection``, which has what it makes know the pool."""

        @wraps(original)
        def make_connection(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            connection = original(pool, *arguments, **keywords)
            self.belongs(getattr(connection, "_conn", connection), pool)  # within one that caches
            return connection

        return make_connection

    def subscribing(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """``register_connect_callback``, for whoever has subscriptions to renew: they last."""

        @wraps(original)
        def register_connect_callback(connection: Any, *arguments: Any, **keywords: Any) -> Any:
            self.lasts(connection)
            return original(connection, *arguments, **keywords)

        return register_connect_callback


class RedisAdapter(RedisPools):
    """Measures ``redis.asyncio.ConnectionPool`` and its children."""

    def patch(self, module: ModuleType) -> None:
        check_version(module)
        library: Any = module.asyncio.connection
        plain, waiting = library.ConnectionPool, library.BlockingConnectionPool
        acquiring = partial(self.acquiring, reason=reason)
        # the waiting one's is around the plain one's, which would count once more
        # (``isinstance`` takes several times as long: the library's pools are abstract ones)
        once = partial(acquiring, skips=lambda pool: waiting in type(pool).__mro__)
        self.keep(Patch(plain, "get_connection", once))
        self.keep(Patch(waiting, "get_connection", acquiring))
        self.keep(Patch(plain, "release", self.releasing))
        self.keep(Patch(plain, "make_connection", self.marking))
        connection = library.AbstractConnection
        opening = partial(self.opening, pool_of=self.pool_of, skips=self.is_connected)
        self.keep(Patch(connection, connect_of(connection), opening))
        self.keep(Patch(connection, "register_connect_callback", self.subscribing))


def connect_of(connection: type) -> str:
    """The name of the method that connects, whoever asked for it: newer versions have two."""
    innermost = "connect_check_health"
    return innermost if hasattr(connection, innermost) else "connect"


def reason(error: BaseException) -> BaseException:
    """Why there is no connection: who waits in vain gets the error of one who cannot connect."""
    is_either = type(error).__name__ == "ConnectionError"
    return TimeoutError() if is_either and isinstance(error.__context__, _IN_VAIN) else error


def check_version(module: ModuleType) -> None:
    """Raise ``RuntimeError`` for a version whose pools give back in other ways."""
    version = str(module.__version__)
    if int(version.partition(".")[0]) < _OLDEST:
        raise RuntimeError(f"redis {version} is older than {_OLDEST}.0: its pools are not measured")
