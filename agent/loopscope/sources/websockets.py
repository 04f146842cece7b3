"""WebSockets: how many are open, for how long, what goes over them and how they end.

They are kept apart from HTTP requests: a session of an hour is no slow request.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import Protocol

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.faults import Faults
from loopscope.core.histogram import Histogram, Number
from loopscope.core.metric import LONG_BOUNDS, Metric
from loopscope.core.page import Page
from loopscope.sources.exchange import (
    SCOPE_KEY,
    Exchange,
    Message,
    Receive,
    Resolver,
    Scope,
    Send,
)
from loopscope.sources.requests import CANCELLED, type_name

DURATION = Metric(
    "loopscope_websocket_duration_seconds",
    "histogram",
    "How long WebSocket sessions lasted, from the server calling the application to its end.",
    ("http_route",),
    unit="seconds",
    bounds=LONG_BOUNDS,
)
MESSAGES = Metric(
    "loopscope_websocket_messages_total",
    "counter",
    "WebSocket messages of ended sessions, by direction: in (from the client) or out.",
    ("http_route", "direction"),
)
BYTES = Metric(
    "loopscope_websocket_bytes_total",
    "counter",
    "Payload bytes of WebSocket messages of ended sessions (text counted as UTF-8), by direction.",
    ("http_route", "direction"),
    unit="bytes",
)
CLOSES = Metric(
    "loopscope_websocket_closes_total",
    "counter",
    "Ended WebSocket sessions by close code and who began it: client, server, or error when the "
    "application raised. Codes a client made up are published as 3xxx and 4xxx.",
    ("http_route", "code", "initiator"),
)

METRICS = (DURATION, MESSAGES, BYTES, CLOSES)


class SessionTracer(Protocol):
    """Makes spans of sessions; only asked when tracing is on."""

    def begin_session(self, session: WebSocketExchange) -> object: ...

    def end_session(
        self, span: object, session: WebSocketExchange, ended: float, route: str, error: str
    ) -> None: ...


_STANDARD_CODES = frozenset(range(1000, 1016))


class _Cell:
    """The series of one route."""

    def __init__(self, page: Page, route: str) -> None:
        slots = page.slots

        def number(metric: Metric, *labels: str) -> Number:
            return Number(slots, page.allocate(metric, (route, *labels)))

        self.duration = Histogram(slots, page.allocate(DURATION, (route,)), DURATION.bounds)
        self.messages_in = number(MESSAGES, "in")
        self.messages_out = number(MESSAGES, "out")
        self.bytes_in = number(BYTES, "in")
        self.bytes_out = number(BYTES, "out")


class WebSocketRecorder:
    """Everything one event loop's thread records about WebSockets; the only writer of its slots."""

    def __init__(
        self,
        page: Page,
        now: Callable[[], float],
        faults: Faults,
        *,
        max_series: int,
        tracer: SessionTracer | None = None,
    ) -> None:
        self.now = now
        self.faults = faults
        self.tracer = tracer
        self.malformed = 0
        """Messages no server or application would understand; they were passed on unread."""
        self.active: set[WebSocketExchange] = set()
        """Sessions under way. Copy before looking at it from another thread."""
        self._page = page
        self._routes: Budget[str, _Cell] = Budget(
            max_series, self._cell, lambda: self._cell(OVERFLOW)
        )
        self._closes: Budget[tuple[str, str, str], Number] = Budget(
            max_series, self._close, lambda: self._close((OVERFLOW, OVERFLOW, OVERFLOW))
        )

    @property
    def folded(self) -> int:
        """How many sessions were folded into the overflow series."""
        return self._routes.folded + self._closes.folded

    def abandon(self) -> None:
        """Let go of the page and the tracer: sessions under way end without leaving a mark."""
        self._routes.forget()
        self._closes.forget()
        self.tracer = None

    def record(self, exchange: WebSocketExchange, route: str, ended: float) -> None:
        """Add one ended session."""
        cell = self._routes.admit(route)
        if cell is not None:
            cell.duration.observe(ended - exchange.started)
            cell.messages_in.add(exchange.messages_in)
            cell.messages_out.add(exchange.messages_out)
            cell.bytes_in.add(exchange.bytes_in)
            cell.bytes_out.add(exchange.bytes_out)
        close = self._closes.admit((route, exchange.code, exchange.initiator))
        if close is not None:
            close.add()

    def _cell(self, route: str) -> _Cell:
        return _Cell(self._page, route)

    def _close(self, labels: tuple[str, str, str]) -> Number:
        return Number(self._page.slots, self._page.allocate(CLOSES, labels))


class WebSocketExchange(Exchange):
    """One WebSocket session."""

    messages_in = 0
    messages_out = 0
    bytes_in = 0
    bytes_out = 0
    code = ""
    initiator = ""
    route = ""
    """The template, once the session is accepted."""
    span: object = None

    def __init__(
        self,
        recorder: WebSocketRecorder,
        resolver: Resolver,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self.recorder = recorder
        self._resolver = resolver
        self._receive = receive
        self._send = send
        self.scope = scope
        self.pending = self.steps = None
        self.suspended = 0.0
        self.now = recorder.now
        scope[SCOPE_KEY] = self
        self.started = self.step_started = recorder.now()
        recorder.active.add(self)  # last: from here on other threads look at it
        if recorder.tracer is not None:
            self._begin_span(recorder.tracer)

    @property
    def app(self) -> object:
        """The application that is going to answer."""
        return self._resolver.app

    def send(self, message: Message) -> Awaitable[None]:
        """Pass ``message`` to the server and count it."""
        try:
            self._note_sent(message)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.recorder.malformed += 1  # the server will say what is wrong with the message
        return self._send(message)

    async def receive(self) -> Message:
        """Pass on what the server has and count it."""
        message = await self._receive()
        try:
            self._note_received(message)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.recorder.malformed += 1  # what to make of it is for the app to say
        return message

    def _note_sent(self, message: Message) -> None:
        kind = message.get("type")
        if kind == "websocket.send":
            self.messages_out += 1
            self.bytes_out += _payload_bytes(message)
        elif kind == "websocket.accept":
            self.route = self._resolver.resolve(self.scope)
        elif kind == "websocket.close":
            self._closed(str(message.get("code") or 1000), "server")
        elif kind == "websocket.http.response.start":
            self._closed(f"http_{message.get('status')}", "server")  # refused before it began

    def _note_received(self, message: Message) -> None:
        kind = message.get("type")
        if kind == "websocket.receive":
            self.messages_in += 1
            self.bytes_in += _payload_bytes(message)
        elif kind == "websocket.disconnect":
            self._closed(_client_code(message.get("code")), "client")

    def route_so_far(self) -> str:
        """The route's template, as far as routing has come. From any thread."""
        return self.route or self._resolver.resolve(self.scope)

    def _closed(self, code: str, initiator: str) -> None:
        """Only the first closing counts: the other side answers it with one of its own."""
        if not self.initiator:
            self.code, self.initiator = code, initiator

    def finish(self, error: BaseException | None) -> None:
        recorder = self.recorder
        recorder.active.discard(self)
        try:
            self.scope.pop(SCOPE_KEY, None)
            if error is not None:
                self._closed("1011", "error")
            self._closed("1006", "server")  # the app returned without closing: the server drops it
            route = self.route or self._resolver.resolve(self.scope)
            ended = self.now()
            recorder.record(self, route, ended)
            if self.span is not None and recorder.tracer is not None:
                recorder.tracer.end_session(self.span, self, ended, route, self._error_type(error))
        except Exception as fault:
            recorder.faults.report("websockets", fault)

    def _begin_span(self, tracer: SessionTracer) -> None:
        try:
            self.span = tracer.begin_session(self)
        except Exception as error:
            self.recorder.faults.report("traces", error)

    def _error_type(self, error: BaseException | None) -> str:
        """The type of what the app raised; nothing where it only passes on that its client left."""
        if error is None or (
            self.initiator == "client" and type(error).__name__ == "WebSocketDisconnect"
        ):
            return ""
        if isinstance(error, CancelledError | GeneratorExit):
            return CANCELLED
        return type_name(error)


def _payload_bytes(message: Message) -> int:
    data = message.get("bytes")
    if data is not None:
        return len(data)
    text = message.get("text") or ""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _client_code(code: object) -> str:
    """A label for a code the client chose: made-up ones must not make series."""
    number = code if isinstance(code, int) else 1005
    if number in _STANDARD_CODES:
        return str(number)
    return f"{number // 1000}xxx" if 3000 <= number < 5000 else "other"
