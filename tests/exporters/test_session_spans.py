"""Spans of WebSocket sessions: what they say, and when there are none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.core.faults import Faults
from tests.exporters.providers import make_provider, set_provider
from tests.exporters.test_spans import PARENT, Failing, seconds, server_span, trace_id
from tests.harness import Message, Server, published, scraped, websocket_scope

CONNECT: Message = {"type": "websocket.connect"}


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """A provider the service has set up itself; what it exports."""
    provider, exporter = make_provider()
    set_provider(provider)
    return exporter


def text(value: str) -> Message:
    return {"type": "websocket.receive", "text": value}


def leaves(code: int = 1000) -> Message:
    return {"type": "websocket.disconnect", "code": code}


async def echo(websocket: WebSocket) -> None:
    """Answers each message twice, tracing what it does, until the client leaves."""
    await websocket.accept()
    try:
        while True:
            received = await websocket.receive_text()
            with trace.get_tracer("service").start_as_current_span("inner"):
                await websocket.send_text(received)
                await asyncio.sleep(0)
                await websocket.send_text(received)
    except WebSocketDisconnect:
        pass


ECHO = Starlette(routes=[WebSocketRoute("/rooms/{room}", echo)])


async def session(app: Any, *incoming: Message, path: str = "/rooms/7", **more: Any) -> Server:
    server = Server(incoming=[CONNECT, *incoming])
    await app({**websocket_scope(path), **more}, server.receive, server.send)
    return server


def serve(app: Any, *incoming: Message, **more: Any) -> Server:
    return asyncio.run(session(Loopscope(app), *incoming, **more))


def closing(code: int, *, accept: bool = True) -> Any:
    """An application that closes by itself."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if accept:
            await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": code})

    return app


def raising(error: BaseException) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        raise error

    return app


def is_error(span: ReadableSpan) -> bool:
    return span.status.status_code is StatusCode.ERROR


def attributes(spans: InMemorySpanExporter) -> dict[str, Any]:
    return dict(server_span(spans).attributes or {})


def test_a_session_is_one_server_span(spans: InMemorySpanExporter) -> None:
    """It is named by its route, says what went over it and how it closed, and is no request."""
    serve(ECHO, text("ab"), text("é"), leaves())
    assert server_span(spans).name == "WS /rooms/{room}"
    assert attributes(spans) == {
        "http.route": "/rooms/{room}",
        "network.protocol.name": "websocket",
        "url.path": "/rooms/7",
        "url.scheme": "ws",
        "client.address": "127.0.0.1",
        "server.address": "127.0.0.1",
        "server.port": 8000,
        "loopscope.websocket.close.code": "1000",
        "loopscope.websocket.close.initiator": "client",
        "loopscope.websocket.messages.in": 2,
        "loopscope.websocket.messages.out": 4,
        "loopscope.websocket.bytes.in": 4,
        "loopscope.websocket.bytes.out": 8,
    }
    assert server_span(spans).status.status_code is StatusCode.UNSET


def test_nothing_the_client_sent_but_its_path_is_in_a_span(spans: InMemorySpanExporter) -> None:
    """No query, header, message or reason, nor the text of an exception."""
    names = (b"authorization", b"cookie", b"origin", b"sec-websocket-key")
    with pytest.raises(LookupError):
        serve(
            raising(LookupError("secret")),
            text("secret"),
            query_string=b"token=secret",
            headers=[(name, b"secret") for name in names],
        )
    assert "secret" not in server_span(spans).to_json()


def test_the_services_own_spans_nest_under_it(spans: InMemorySpanExporter) -> None:
    """What the service traces while it answers a message is a child of the session's span."""
    serve(ECHO, text("a"), text("b"), leaves())
    inner = [span for span in spans.get_finished_spans() if span.name == "inner"]
    assert [span.parent and span.parent.span_id for span in inner] == [
        server_span(spans).context.span_id
    ] * 2


def test_the_context_is_as_before_once_the_session_is_over(spans: InMemorySpanExporter) -> None:
    """The task that served a session does not carry its span on."""

    async def then_look() -> trace.Span:
        await session(Loopscope(ECHO), leaves())
        return trace.get_current_span()

    assert asyncio.run(then_look()) is trace.INVALID_SPAN


def test_the_handshakes_parent_is_honoured(spans: InMemorySpanExporter) -> None:
    """A traceparent header makes the session part of its caller's trace."""
    serve(ECHO, leaves(), headers=[(b"traceparent", PARENT.encode())])
    span = server_span(spans)
    assert span.parent is not None
    assert trace_id(span) == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


def test_the_span_lasts_as_long_as_the_published_duration(spans: InMemorySpanExporter) -> None:
    """Both from the server's call to its end."""
    serve(ECHO, text("a"), leaves())
    lasted = published("loopscope_websocket_duration_seconds_sum")
    assert seconds(server_span(spans)) == pytest.approx(lasted, rel=0, abs=2e-9)


@pytest.mark.parametrize(
    ("code", "failed"),
    [(1000, False), (1001, False), (1005, False), (1002, True), (1006, True), (4401, False)],
)
def test_a_client_that_closes_is_an_error_only_if_we_were(
    spans: InMemorySpanExporter, code: int, failed: bool
) -> None:
    """Going is no error; being cut off, or told that what we sent was wrong, is one."""
    serve(ECHO, leaves(code))
    assert is_error(server_span(spans)) is failed
    assert attributes(spans).get("error.type") == (str(code) if failed else None)


@pytest.mark.parametrize(
    ("code", "failed"),
    [(1000, False), (1002, False), (1008, False), (1011, True), (1013, True), (4401, False)],
)
def test_a_server_that_closes_is_an_error_only_if_it_failed(
    spans: InMemorySpanExporter, code: int, failed: bool
) -> None:
    """Turning a client out for what it did is no more an error than a 4xx."""
    serve(closing(code))
    assert attributes(spans)["loopscope.websocket.close.initiator"] == "server"
    assert is_error(server_span(spans)) is failed


def test_a_session_dropped_without_a_close_is_an_error(spans: InMemorySpanExporter) -> None:
    """The application returned, and its server cut the connection."""

    async def forgets(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    serve(forgets)
    assert attributes(spans)["error.type"] == "1006"
    assert is_error(server_span(spans))


def test_a_session_closed_before_it_was_accepted_is_none(spans: InMemorySpanExporter) -> None:
    """Refusing is the application's right."""
    serve(closing(1008, accept=False))
    assert attributes(spans)["loopscope.websocket.close.code"] == "1008"
    assert not is_error(server_span(spans))


@pytest.mark.parametrize(("status", "failed"), [(401, False), (503, True)])
def test_a_refusal_by_http_has_its_status(
    spans: InMemorySpanExporter, status: int, failed: bool
) -> None:
    """The denial response is HTTP, and judged as HTTP: only 5xx is an error."""

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.http.response.start", "status": status, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no"})

    serve(refuses)
    assert attributes(spans)["http.response.status_code"] == status
    assert "loopscope.websocket.close.code" not in attributes(spans)
    assert is_error(server_span(spans)) is failed


def test_an_exception_is_an_event_with_where_it_came_from(spans: InMemorySpanExporter) -> None:
    """Type and traceback are there, and the session counts as failed."""
    with pytest.raises(LookupError):
        serve(raising(LookupError()), text("a"))
    assert attributes(spans)["error.type"] == "LookupError"
    assert attributes(spans)["loopscope.websocket.close.initiator"] == "error"
    (event,) = server_span(spans).events
    assert event.attributes is not None
    assert str(event.attributes["exception.stacktrace"]).endswith("LookupError\n")


def test_an_application_that_passes_on_that_its_client_left_has_not_failed(
    spans: InMemorySpanExporter,
) -> None:
    """Most endpoints let Starlette's WebSocketDisconnect through: that is how they end."""
    with pytest.raises(WebSocketDisconnect):
        serve(raising(WebSocketDisconnect(1001)), leaves(1001))
    assert not is_error(server_span(spans))
    assert not server_span(spans).events


def test_a_cancelled_session_is_an_error_of_its_own_kind(spans: InMemorySpanExporter) -> None:
    """A server that shuts down cancels what is open; the spans end and say so."""

    async def cancelled() -> None:
        waiting = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            waiting.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(session(Loopscope(app)))
        await waiting.wait()
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(cancelled())
    assert attributes(spans)["error.type"] == "cancelled"
    assert not server_span(spans).events


@pytest.mark.parametrize("wrapped", [False, True])
def test_fastapis_own_span_is_the_only_one(spans: InMemorySpanExporter, wrapped: bool) -> None:
    """Inside or around a FastAPI that traces WebSockets by itself, we make no second span."""
    pytest.importorskip("fastapi.telemetry", reason="this FastAPI does not trace by itself")
    app = FastAPI()
    app.websocket("/rooms/{room}")(echo)
    if not wrapped:
        app.add_middleware(Loopscope)
    asyncio.run(session(Loopscope(app) if wrapped else app, leaves()))
    made = server_span(spans).instrumentation_scope
    assert made is not None
    assert made.name == "fastapi"


def test_the_asgi_instrumentations_span_around_us_is_the_only_one(
    spans: InMemorySpanExporter,
) -> None:
    """Below OpenTelemetry's own middleware we make no span."""
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    app = asgi.OpenTelemetryMiddleware(Loopscope(ECHO), exclude_spans=["receive", "send"])
    asyncio.run(session(app, leaves()))
    made = server_span(spans).instrumentation_scope
    assert made is not None
    assert made.name == "opentelemetry.instrumentation.asgi"


def test_a_provider_set_later_is_used_from_the_next_scrape() -> None:
    """Sessions follow the change of providers as requests do."""
    app = Loopscope(ECHO)

    async def run() -> InMemorySpanExporter:
        await session(app, leaves())
        provider, exporter = make_provider()
        set_provider(provider)
        scraped()
        await session(app, leaves())
        return exporter

    assert server_span(asyncio.run(run())).kind is SpanKind.SERVER


def test_without_a_provider_a_session_has_no_span() -> None:
    """Tracing costs nothing where nobody asked for it."""

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        agent = current_agent()
        assert agent is not None
        (live,) = agent.live_sessions()
        assert live.span is None

    serve(looks)
    assert published("loopscope_websocket_duration_seconds_count") == 1


@pytest.mark.quiet_faults
@pytest.mark.parametrize("on_start", [True, False])
def test_tracing_that_keeps_failing_is_switched_off_alone(
    monkeypatch: pytest.MonkeyPatch, on_start: bool
) -> None:
    """A broken span processor costs the spans, never a session nor its figures."""
    monkeypatch.setattr(Faults, "TOLERANCE", 3)
    broken = Failing(on_start=on_start)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(broken)
    set_provider(provider)
    app = Loopscope(closing(1000))

    async def five() -> None:
        for _ in range(5):
            assert len((await session(app)).sent) == 2

    asyncio.run(five())
    assert broken.calls == 3
    assert published("loopscope_websocket_duration_seconds_count") == 5
