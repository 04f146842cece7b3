"""aiohttp's connectors: the pools of its client sessions.

Everything takes a connection through ``BaseConnector.connect``, and gives it back through
``_release``, which also sees those that are closed, or collected with a response nobody read. The
wait is the one in the queue: whoever gets to make a connection has its place in the pool, and what
goes wrong from there on, a timeout included, is not the pool's. aiohttp itself calls both timeouts
by one name.

By default a session's timeout is one for the whole request, which cancels it, and calls it a
timeout only further out. Who was cancelled by that while waiting counts as a timeout here too.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.clients import ClientAdapter
from loopscope.sources.pools.meter import Level
from loopscope.sources.pools.use import Use

_Function = Callable[..., Any]


class AiohttpAdapter(ClientAdapter):
    """Measures ``aiohttp.BaseConnector`` and what is derived from it."""

    module = "aiohttp"
    kind = "http.aiohttp"
    library = "aiohttp"

    def patch(self, module: ModuleType) -> None:
        connectors: Any = module.connector
        base = connectors.BaseConnector
        for owner, name, make in (
            (base, "__init__", self.constructing),
            (base, "connect", self._acquiring),
            (base, "_release", self._releasing),
            (base, "_close", self.closing),
            (connectors.TCPConnector, "_create_connection", self._connecting),
            (connectors.UnixConnector, "_create_connection", self._connecting),
        ):
            self.keep(Patch(owner, name, make))

    def level_of(self, pool: Any) -> Level:
        kept = list(pool._conns.values())  # noqa: SLF001
        return Level(capacity=pool.limit or None, idle=sum(map(len, kept)))

    def origin_of(self, request: Any) -> tuple[str, int | None]:
        return request.connection_key.host, request.connection_key.port

    def _acquiring(self, original: _Function) -> _Function:
        @wraps(original)
        async def connect(pool: Any, request: Any, *arguments: Any, **keywords: Any) -> Any:
            use = self.asked(pool, request)
            if use is None:
                return await original(pool, request, *arguments, **keywords)
            try:
                connection = await original(pool, request, *arguments, **keywords)
            except BaseException as error:
                self._ended(use, request, error)
                raise
            self.took(use, getattr(connection, "protocol", None))
            return connection

        return connect

    def _releasing(self, original: _Function) -> _Function:
        @wraps(original)
        def _release(pool: Any, key: Any, protocol: Any, *arguments: Any, **keywords: Any) -> Any:
            self.gave_back(protocol)
            return original(pool, key, protocol, *arguments, **keywords)

        return _release

    def _connecting(self, original: _Function) -> _Function:
        @wraps(original)
        async def _create_connection(
            pool: Any, request: Any, *arguments: Any, **keywords: Any
        ) -> Any:
            self.started(request)
            began = self.book.now()
            protocol = await original(pool, request, *arguments, **keywords)
            self.opened(pool, began)
            return protocol

        return _create_connection

    def _ended(self, use: Use, request: Any, error: BaseException) -> None:
        """There is not going to be a connection."""
        try:
            if not use.is_waiting:
                use.release()
            elif isinstance(error, CancelledError) and _is_too_late(request):
                use.failed(TimeoutError())
            else:
                use.failed(error)
        except Exception as fault:
            self._failed(fault)


def _is_too_late(request: Any) -> bool:
    """Whether the whole request's time is over."""
    return bool(getattr(getattr(request, "_timer", None), "_cancelled", False))
