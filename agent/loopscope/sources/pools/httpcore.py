"""httpcore's pools, which are those of httpx, and httpcore2's, which are those of httpx2.

Each client has a pool. A request waits in it until a connection is its own, to connect or to write
its head to, and has that until its response is closed. That a connection was assigned to it says
little: another may be faster to write, and then it has to queue again, which httpcore 1.0 has most
requests of a full pool do many times.

Over HTTP/2 one connection serves many requests at a time. In use are the requests then, as ever,
and a pool that has such a connection has no capacity: the number of its connections limits nothing.

Connecting is part of the use, but for what comes on top of reaching a proxy (its ``CONNECT``, and
the TLS behind it), which is part of the wait and of no ``create``. What a SOCKS proxy leads to
counts as nothing made.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

from loopscope.core.patch import Patch
from loopscope.sources.pools.adapter import METER
from loopscope.sources.pools.clients import ClientAdapter, use_of
from loopscope.sources.pools.meter import Level, Meter
from loopscope.sources.pools.use import Use

_Function = Callable[..., Any]


class HttpcoreAdapter(ClientAdapter):
    """Measures ``httpcore.AsyncConnectionPool``, and ``ConnectionPool``, its twin for threads."""

    module = "httpcore"
    kind = "http.httpx"
    library = "httpx"

    def patch(self, module: ModuleType) -> None:
        library: Any = module
        flavour = library._async  # noqa: SLF001
        pools, proxies = flavour.connection_pool, flavour.http_proxy
        self._patch_all(
            (pools.AsyncConnectionPool, "__init__", self.constructing),
            (pools.AsyncConnectionPool, "create_connection", self._creating),
            (pools.AsyncConnectionPool, "handle_async_request", self._sending),
            (pools.AsyncConnectionPool, "aclose", self.closing),
            (pools.PoolByteStream, "aclose", self._ending),
            (pools.AsyncHTTPConnection, "_connect", self._connecting),
            (proxies.AsyncForwardHTTPConnection, "handle_async_request", self._starting),
            (flavour.http11.AsyncHTTP11Connection, "_send_request_headers", self._starting),
        )
        if hasattr(flavour, "http2"):  # which takes another package
            owner = flavour.http2.AsyncHTTP2Connection
            self._patch_all((owner, "_send_request_headers", self._starting))
        flavour = library._sync  # noqa: SLF001
        pools, proxies = flavour.connection_pool, flavour.http_proxy
        self._patch_all(
            (pools.ConnectionPool, "__init__", self.constructing),
            (pools.ConnectionPool, "create_connection", self._creating),
            (pools.ConnectionPool, "handle_request", self._sending_in_thread),
            (pools.ConnectionPool, "close", self.closing),
            (pools.PoolByteStream, "close", self._ending),
            (pools.HTTPConnection, "_connect", self._connecting_in_thread),
            (proxies.ForwardHTTPConnection, "handle_request", self._starting),
            (flavour.http11.HTTP11Connection, "_send_request_headers", self._starting),
        )
        if hasattr(flavour, "http2"):
            owner = flavour.http2.HTTP2Connection
            self._patch_all((owner, "_send_request_headers", self._starting))

    def level_of(self, pool: Any) -> Level:
        connections = list(pool._connections)  # noqa: SLF001
        limit = pool._max_connections  # noqa: SLF001
        is_limit = limit < sys.maxsize and not (pool._http2 and any(map(_is_http2, connections)))  # noqa: SLF001
        idle = sum(connection.is_idle() for connection in connections)
        return Level(capacity=limit if is_limit else None, idle=idle)

    def origin_of(self, request: Any) -> tuple[str, int | None]:
        origin = request.url.origin
        return origin.host.decode("ascii", "replace"), origin.port

    def _patch_all(self, *patches: tuple[type, str, Callable[[_Function], _Function]]) -> None:
        for owner, name, make in patches:
            self.keep(Patch(owner, name, make))

    def _creating(self, original: _Function) -> _Function:
        @wraps(original)
        def create_connection(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            connection = original(pool, *arguments, **keywords)
            self.safely(lambda: self._created(pool, connection))
            return connection

        return create_connection

    def _sending(self, original: _Function) -> _Function:
        @wraps(original)
        async def handle_async_request(
            pool: Any, request: Any, *arguments: Any, **keywords: Any
        ) -> Any:
            use = self.asked(pool, request)
            if use is None:
                return await original(pool, request, *arguments, **keywords)
            try:
                return await original(pool, request, *arguments, **keywords)
            except BaseException as error:
                self._ended(use, error)
                raise

        return handle_async_request

    def _sending_in_thread(self, original: _Function) -> _Function:
        @wraps(original)
        def handle_request(pool: Any, request: Any, *arguments: Any, **keywords: Any) -> Any:
            use = self.asked(pool, request)
            if use is None:
                return original(pool, request, *arguments, **keywords)
            try:
                return original(pool, request, *arguments, **keywords)
            except BaseException as error:
                self._ended(use, error)
                raise

        return handle_request

    def _starting(self, original: _Function) -> _Function:
        """For coroutines and threads alike: all it does is before the original begins."""

        @wraps(original)
        def start(connection: Any, request: Any, *arguments: Any, **keywords: Any) -> Any:
            self.started(request)
            return original(connection, request, *arguments, **keywords)

        return start

    def _connecting(self, original: _Function) -> _Function:
        @wraps(original)
        async def _connect(connection: Any, request: Any, *arguments: Any, **keywords: Any) -> Any:
            self.started(request)
            began = self.book.now()
            stream = await original(connection, request, *arguments, **keywords)
            self._connected(connection, began)
            return stream

        return _connect

    def _connecting_in_thread(self, original: _Function) -> _Function:
        @wraps(original)
        def _connect(connection: Any, request: Any, *arguments: Any, **keywords: Any) -> Any:
            self.started(request)
            began = self.book.now()
            stream = original(connection, request, *arguments, **keywords)
            self._connected(connection, began)
            return stream

        return _connect

    def _ending(self, original: _Function) -> _Function:
        """For coroutines and threads alike, as another coroutine would cost more than the rest."""

        @wraps(original)
        def close(stream: Any, *arguments: Any, **keywords: Any) -> Any:
            self._over(stream)
            return original(stream, *arguments, **keywords)

        return close

    def _ended(self, use: Use, error: BaseException) -> None:
        """There is not going to be a response."""
        try:
            if use.is_waiting:
                use.failed(error)
            else:
                use.release()
        except Exception as fault:
            self._failed(fault)

    def _over(self, stream: Any) -> None:
        """The response is being closed, and what served it about to be free again."""
        try:
            use = use_of(stream._pool_request.request)  # noqa: SLF001
            if use is not None:
                use.release()
        except Exception as error:
            self._failed(error)

    def _created(self, pool: Any, connection: Any) -> None:
        """Have ``connection``, or the one to the proxy in it, know whose it is."""
        meter = self.meter_of(pool)
        for each in (connection, getattr(connection, "_connection", None)):
            if each is not None:
                vars(each)[METER] = meter

    def _connected(self, connection: Any, began: float) -> None:
        """``connection`` is there. By whom is seen from who calls: not who had it created."""
        try:
            meter: Meter | None = getattr(connection, METER, None)
            if meter is not None:
                meter.opened(self.book.now() - began)
        except Exception as error:
            self._failed(error)


class Httpcore2Adapter(HttpcoreAdapter):
    """Measures the same classes of ``httpcore2``."""

    module = "httpcore2"
    kind = "http.httpx2"
    library = "httpx2"


def _is_http2(connection: Any) -> bool:
    return "HTTP/2" in connection.info()
