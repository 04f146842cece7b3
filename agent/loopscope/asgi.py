"""The middleware: one line in a service.

::

    app.add_middleware(Loopscope)      # Starlette, FastAPI
    app = Loopscope(app)               # any ASGI application

The object holds configuration only; every request gets a small object of its own
(``sources.requests.HttpExchange``). Whatever goes wrong in here, the application is called.
"""

from __future__ import annotations

import logging
from threading import get_ident
from types import CoroutineType
from typing import Any, Unpack

from loopscope.admin.listener import AdminListener
from loopscope.agent import Agent, Front, Recorders, join_agent
from loopscope.core.faults import Faults
from loopscope.core.routes import RouteResolver
from loopscope.core.running import running_loop
from loopscope.sentinel.keeper import Keeper
from loopscope.settings import SettingsKeywords, resolve_for_service
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
from loopscope.sources.requests import HttpExchange, Lane
from loopscope.sources.websockets import WebSocketExchange

logger = logging.getLogger("loopscope")


class Loopscope:
    """ASGI middleware that measures every request and WebSocket of ``app``.

    Keyword arguments are settings (``python -m loopscope settings`` lists them); they win over
    ``LOOPSCOPE_*`` variables. Raises ``SettingsError`` for a keyword that is unknown or wrong, and
    for such a variable; on a running event loop the latter is logged and nothing is measured.
    """

    def __init__(self, app: App, **settings: Unpack[SettingsKeywords]) -> None:
        self.app = app
        self._settings = resolve_for_service(settings)
        self._exclude = self._settings.exclude_pattern
        self._resolver = RouteResolver(
            app, on_error=lambda fault: self._faults.report("routes", fault)
        )
        self._has_declined = False
        self._agent: Agent | None = None
        self._faults = Faults()  # the agent's, once there is one
        self._lane: Lane | None = None
        """The latest thread's, where no path is excluded: most services have one loop."""
        self._lanes: dict[int, Lane] = {}
        """By thread."""
        self._recorders: Recorders | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        # Nothing here is a method of its own, for the reason that sources.requests gives; and
        # another coroutine would cost every request more than all of these branches.
        lane = self._lane
        if (
            lane is None
            or scope["type"] != "http"
            or SCOPE_KEY in scope
            or lane.recorder.thread != get_ident()
        ):
            exchange = self._exchange(scope, receive, send)
        else:
            try:
                exchange = HttpExchange(lane, scope, receive, send)
            except Exception as error:
                lane.recorder.failed(error)
                exchange = None
        if exchange is None:
            if scope["type"] == "lifespan" and self._settings.enabled:
                return await self._lifespan(scope, receive, send)
            return await self.app(scope, receive, send)
        try:
            called: Any = self.app(scope, exchange.receive, exchange.send)
            coroutine: Any = called
            if type(called) is not CoroutineType:
                coroutine = as_coroutine(called)
            try:
                waiting_for = coroutine.send(None)
            except StopIteration as done:
                result = done.value
            else:
                steps = Steps(exchange, coroutine, waiting_for)
                waiting_for = None  # whatever it is, its time ends before ours
                result = await steps
        except BaseException as error:
            exchange.finish(error)
            raise
        exchange.finish(None)
        return result

    def _exchange(self, scope: Scope, receive: Receive, send: Send) -> Exchange | None:
        """What measures this call; None where nothing should. Opens a lane for the next ones."""
        kind = scope["type"]
        if SCOPE_KEY in scope or (kind != "http" and kind != "websocket"):
            return None
        try:
            if self._exclude is not None and self._exclude.search(scope["path"]):
                return None
            recorders = self._attach()
            if recorders is None:
                return None
            if kind == "websocket":
                return WebSocketExchange(recorders.websockets, self._resolver, scope, receive, send)
            return HttpExchange(self._find_lane(recorders), scope, receive, send)
        except Exception as error:
            self._faults.report("middleware", error)
            return None

    def _attach(self) -> Recorders | None:
        """This thread's recorders; starts the agent if need be.

        None where measuring is off, or cannot be started.
        """
        recorders = self._recorders
        if recorders is not None and recorders.thread == get_ident():
            return recorders
        if not self._settings.enabled or self._faults.is_off("start") or not self._can_observe():
            return None
        try:
            self._agent = join_agent(self._settings, _front)
            self._faults = self._agent.faults
            self._agent.tell_routes(self._resolver)
            self._recorders = self._agent.recorders()
        except Exception as error:  # no /proc, no memory
            self._faults.report("start", error)
            return None
        return self._recorders

    def _can_observe(self) -> bool:
        """Whether the loop that runs is asyncio's, or like it; says so once where it is not."""
        if running_loop() is not None:
            return True
        if not self._has_declined:
            self._has_declined = True
            logger.warning(
                "loopscope: only event loops of asyncio and uvloop are observed, and this one "
                "is neither: nothing that it runs is measured"
            )
        return False

    def _find_lane(self, recorders: Recorders) -> Lane:
        """Make the lane of this thread the one that requests take without asking."""
        thread = get_ident()
        lane = self._lanes.get(thread)
        if lane is None or lane.recorder is not recorders.requests:
            in_use = ((t, lane) for t, lane in self._lanes.items() if lane.recorder.thread == t)
            self._lanes = dict(in_use)
            lane = self._lanes[thread] = Lane(recorders.requests, self._resolver)
        if self._exclude is None:
            self._lane = lane
        return lane

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


def _front(agent: Agent) -> Front:
    """What serves the figures of ``agent``, or sees to it that a sentinel does."""
    path = agent.page.path
    keeper = Keeper(path.parent, agent.settings) if path and agent.settings.sentinel else None
    return AdminListener.of_worker(agent, keeper)
