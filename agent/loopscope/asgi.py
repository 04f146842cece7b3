"""The middleware: one line in a service.

::

    app.add_middleware(Loopscope)      # Starlette, FastAPI
    app = Loopscope(app)               # any ASGI application

The object holds configuration only; every request gets a small object of its own
(``sources.requests.HttpExchange``). Whatever goes wrong in here, the application is called.
"""

from __future__ import annotations

from threading import get_ident
from types import CoroutineType
from typing import Any, Unpack

from loopscope.admin.listener import AdminListener
from loopscope.agent import Agent, Recorders, join_agent
from loopscope.core.routes import RouteResolver
from loopscope.settings import SettingsKeywords, resolve
from loopscope.sources.exchange import (
    SCOPE_KEY,
    App,
    Exchange,
    Message,
    Receive,
    Scope,
    Send,
    Steps,
    as_coroutine,
)
from loopscope.sources.requests import HttpExchange
from loopscope.sources.websockets import WebSocketExchange


class Loopscope:
    """ASGI middleware that measures every request and WebSocket of ``app``.

    Keyword arguments are settings (``python -m loopscope settings`` lists them); they win over
    ``LOOPSCOPE_*`` variables. Raises ``SettingsError`` for a setting that is unknown or wrong.
    """

    def __init__(self, app: App, **settings: Unpack[SettingsKeywords]) -> None:
        self.app = app
        self._settings = resolve(settings)
        self._exclude = self._settings.exclude_pattern
        self._resolver: RouteResolver | None = None
        self._agent: Agent | None = None
        self._recorders: Recorders | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        exchange = self._exchange(scope, receive, send)
        if exchange is None:
            if scope["type"] == "lifespan" and self._settings.enabled:
                return await self._lifespan(scope, receive, send)
            return await self.app(scope, receive, send)
        # Written out here and not in a method of the exchange: another coroutine would cost every
        # request more than all of the branches above.
        try:
            called: Any = self.app(scope, exchange.receive, exchange.send)
            coroutine: Any = called
            if type(called) is not CoroutineType:
                coroutine = as_coroutine(called)
            exchange.coroutine = coroutine
            try:
                waiting_for = coroutine.send(None)
            except StopIteration as done:
                result = done.value
            else:
                result = await Steps(exchange, coroutine, waiting_for)
        except BaseException as error:
            exchange.finish(error)
            raise
        exchange.finish(None)
        return result

    def _exchange(self, scope: Scope, receive: Receive, send: Send) -> Exchange | None:
        """What measures this call; None where nothing should."""
        kind = scope["type"]
        if SCOPE_KEY in scope or (kind != "http" and kind != "websocket"):
            return None
        if self._exclude is not None and self._exclude.search(scope["path"]):
            return None
        try:
            recorders = self._recorders
            if recorders is None or recorders.thread != get_ident():
                recorders = self._attach()
                if recorders is None:
                    return None
            resolver = self._resolver
            if resolver is None:
                resolver = self._make_resolver(recorders)
            if kind == "http":
                return HttpExchange(recorders.requests, resolver, scope, receive, send)
            return WebSocketExchange(recorders.websockets, resolver, scope, receive, send)
        except Exception as error:
            if self._agent is not None:
                self._agent.faults.report("middleware", error)
            return None

    def _attach(self) -> Recorders | None:
        """Start the agent if need be; None where measuring is switched off."""
        if not self._settings.enabled:
            return None
        self._agent = join_agent(self._settings, AdminListener)
        self._recorders = self._agent.recorders()
        return self._recorders

    def _make_resolver(self, recorders: Recorders) -> RouteResolver:
        faults = recorders.requests.faults
        self._resolver = RouteResolver(
            self.app, on_error=lambda error: faults.report("routes", error)
        )
        return self._resolver

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Start before the application does, and stop when the last application has ended."""
        self._attach()
        agent = self._agent
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            if message["type"] == "lifespan.startup.complete" and agent is not None:
                started = True
                agent.enter()
            await send(message)

        try:
            return await self.app(scope, receive, noting)
        finally:
            if started and agent is not None:
                agent.leave()
