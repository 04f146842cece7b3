"""Spans of requests through the middleware: what they say, and when there are none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.core.faults import Faults
from tests.exporters.providers import make_provider, set_provider
from tests.harness import Message, Server, call, http_scope, published, scraped

PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


def provide(*, sampler: Sampler | None = None) -> InMemorySpanExporter:
    """Set up a provider as a service would; what it exports."""
    provider, exporter = make_provider(sampler)
    set_provider(provider)
    return exporter


@pytest.fixture
def spans() -> InMemorySpanExporter:
    """A provider the service has set up itself; what it exports."""
    return provide()


async def endpoint(request: Request) -> Response:
    match request.path_params["id"]:
        case "broken":
            raise LookupError(str(request.url))
        case "missing":
            raise HTTPException(404)
    with trace.get_tracer("service").start_as_current_span("inner"):
        await asyncio.sleep(0)
    return PlainTextResponse("hello")


def serve(path: str, **more: Any) -> None:
    app = Loopscope(Starlette(routes=[Route("/items/{id}", endpoint)]))
    asyncio.run(call(app, path, **more))


def server_spans(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [s for s in spans.get_finished_spans() if s.kind is SpanKind.SERVER]


def server_span(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = server_spans(spans)
    return span


def attributes(spans: InMemorySpanExporter) -> dict[str, Any]:
    """The one server span's attributes."""
    return dict(server_span(spans).attributes or {})


def trace_id(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def seconds(span: ReadableSpan) -> float:
    assert span.end_time is not None and span.start_time is not None
    return (span.end_time - span.start_time) / 1e9


def openmetrics() -> str:
    return scraped("application/openmetrics-text; version=1.0.0")


def test_a_request_is_one_server_span(spans: InMemorySpanExporter) -> None:
    """Name, kind and attributes are those of the stable conventions."""
    serve("/items/1")
    assert server_span(spans).name == "GET /items/{id}"
    assert attributes(spans) == {
        "http.request.method": "GET",
        "http.route": "/items/{id}",
        "http.response.status_code": 200,
        "url.path": "/items/1",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "client.address": "127.0.0.1",
        "server.address": "127.0.0.1",
        "server.port": 8000,
        "loopscope.outcome": "ok",
    }


def test_no_header_query_or_message_is_in_a_span(spans: InMemorySpanExporter) -> None:
    """Of what a request carries only its path is sent: not even an exception's text."""
    names = (b"authorization", b"baggage", b"cookie", b"host", b"user-agent", b"x-forwarded-for")
    with pytest.raises(LookupError):
        serve(
            "/items/broken",
            query_string=b"token=secret",
            headers=[(name, b"key=secret") for name in names],
        )
    assert "secret" not in server_span(spans).to_json()


def test_the_services_own_spans_nest_under_it(spans: InMemorySpanExporter) -> None:
    """What the service traces inside a request is a child of the request's span."""
    serve("/items/1")
    (inner,) = [s for s in spans.get_finished_spans() if s.name == "inner"]
    assert inner.parent is not None
    assert inner.parent.span_id == server_span(spans).context.span_id


def test_what_others_keep_in_the_context_stays_there(spans: InMemorySpanExporter) -> None:
    """A value that a middleware around us put into OpenTelemetry's context reaches the app."""
    seen: list[object] = []

    async def app(scope: Message, receive: Any, send: Any) -> None:
        seen.append(context.get_value("tenant"))
        await PlainTextResponse("hello")(scope, receive, send)

    async def around() -> None:
        token = context.attach(context.set_value("tenant", "acme"))
        await call(Loopscope(app))
        seen.append(trace.get_current_span())
        context.detach(token)

    asyncio.run(around())
    assert seen == ["acme", trace.INVALID_SPAN]


def test_a_w3c_parent_is_honoured(spans: InMemorySpanExporter) -> None:
    """A traceparent header makes the span part of its caller's trace."""
    serve("/items/1", headers=[(b"traceparent", PARENT.encode())])
    span = server_span(spans)
    assert span.parent is not None
    assert trace_id(span) == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


def test_a_request_without_a_parent_is_a_trace_of_its_own(spans: InMemorySpanExporter) -> None:
    """What the server happened to be started in, or the request before, is no parent."""

    async def within() -> None:
        app = Loopscope(PlainTextResponse("hello"))
        with trace.get_tracer("service").start_as_current_span("main"):
            await call(app)

    asyncio.run(within())
    assert server_span(spans).parent is None


def test_a_request_inside_a_request_has_its_own_span(spans: InMemorySpanExporter) -> None:
    """A service that calls an app of its own in-process is traced twice, as it served twice."""
    inner = Loopscope(PlainTextResponse("hello"))

    async def outer(scope: Message, receive: Any, send: Any) -> None:
        await call(inner, "/inner")
        await PlainTextResponse("hello")(scope, receive, send)

    asyncio.run(call(Loopscope(outer), "/outer"))
    assert [(span.attributes or {})["url.path"] for span in server_spans(spans)] == [
        "/inner",
        "/outer",
    ]
    assert not any(span.parent for span in server_spans(spans))


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_span_lasts_as_long_as_the_published_duration(
    spans: InMemorySpanExporter, chunks: int
) -> None:
    """The span's end is the last body byte, streamed or not; background tasks do not count."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(chunks):
            yield b"chunk"
            await asyncio.sleep(0)

    async def afterwards() -> None:
        (still_open,) = [r.span for r in agent_requests()]
        assert not server_spans(spans)
        assert still_open is not None

    response = StreamingResponse(body(), background=BackgroundTask(afterwards))
    asyncio.run(call(Loopscope(response)))
    published_duration = published("http_server_request_duration_seconds_sum")
    assert seconds(server_span(spans)) == pytest.approx(published_duration, rel=0, abs=2e-9)


def agent_requests() -> list[Any]:
    agent = current_agent()
    assert agent is not None
    return list(agent.live_requests())


def test_errors_and_only_errors_are_errors(spans: InMemorySpanExporter) -> None:
    """An exception sets the status and error.type; a 404 does not."""
    with pytest.raises(LookupError):
        serve("/items/broken")
    assert server_span(spans).status.status_code is StatusCode.ERROR
    assert attributes(spans)["error.type"] == "LookupError"
    assert attributes(spans)["http.response.status_code"] == 500
    spans.clear()
    serve("/items/missing")
    assert server_span(spans).status.status_code is StatusCode.UNSET
    assert "error.type" not in attributes(spans)


def test_an_exception_is_an_event_with_where_it_came_from(spans: InMemorySpanExporter) -> None:
    """Type and traceback are there, so that a trace is enough to find the line."""
    with pytest.raises(LookupError):
        serve("/items/broken")
    (event,) = server_span(spans).events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.type"] == "LookupError"
    stack = str(event.attributes["exception.stacktrace"])
    assert "in endpoint" in stack
    assert stack.endswith("LookupError\n")


def test_an_exception_of_somebody_else_is_no_event(spans: InMemorySpanExporter) -> None:
    """A 500 that is sent while another exception is being handled around us is not blamed on it."""

    async def around() -> None:
        try:
            raise LookupError
        except LookupError:
            await call(Loopscope(PlainTextResponse("no", 500)))

    asyncio.run(around())
    assert server_span(spans).status.status_code is StatusCode.ERROR
    assert attributes(spans)["error.type"] == "500"
    assert not server_span(spans).events


async def leaves_early(scope: Message, receive: Any, send: Any) -> None:
    await receive()


async def leaves_mid_stream(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    await receive()


async def notices_nothing(scope: Message, receive: Any, send: Any) -> None:
    await PlainTextResponse("hello")(scope, receive, send)


@pytest.mark.parametrize(
    ("app", "outcome", "status"),
    [
        (leaves_early, "client_disconnected_before_response", None),
        (leaves_mid_stream, "client_disconnected_mid_stream", 200),
        (notices_nothing, "client_disconnected_mid_stream", 200),
    ],
)
def test_a_client_that_left_is_an_error_of_its_own_kind(
    spans: InMemorySpanExporter, app: Any, outcome: str, status: int | None
) -> None:
    """As the conventions want it for any response that could not be sent; but never a 500."""
    server = Server(incoming=[{"type": "http.disconnect"}], disconnected=True)
    asyncio.run(Loopscope(app)(http_scope(), server.receive, server.send))
    assert attributes(spans).get("http.response.status_code") == status
    assert attributes(spans)["error.type"] == outcome
    assert attributes(spans)["loopscope.outcome"] == outcome
    assert server_span(spans).status.status_code is StatusCode.ERROR
    assert not server_span(spans).events


def test_a_cancelled_request_is_an_error_without_a_status(spans: InMemorySpanExporter) -> None:
    """The span of a request that was cancelled ends, and says so."""

    async def cancelled() -> None:
        waiting = asyncio.Event()

        async def app(scope: Message, receive: Any, send: Any) -> None:
            waiting.set()
            await asyncio.Event().wait()

        request = asyncio.create_task(call(Loopscope(app)))
        await waiting.wait()
        request.cancel()
        await asyncio.wait([request])

    asyncio.run(cancelled())
    assert attributes(spans)["error.type"] == "cancelled"
    assert "http.response.status_code" not in attributes(spans)
    assert server_span(spans).status.status_code is StatusCode.ERROR


def test_sampled_requests_leave_exemplars(spans: InMemorySpanExporter) -> None:
    """The duration histogram names the trace of its latest request, in OpenMetrics."""
    serve("/items/1")
    assert f'trace_id="{trace_id(server_span(spans))}"' in openmetrics()


@pytest.mark.parametrize(
    ("sampler", "headers"),
    [(ALWAYS_OFF, []), (None, [(b"traceparent", PARENT.encode()[:-1] + b"0")])],
)
def test_unsampled_requests_leave_nothing(sampler: Sampler | None, headers: Any) -> None:
    """Neither a span nor an exemplar, whether our sampler or the caller's decided so."""
    spans = provide(sampler=sampler)
    serve("/items/1", headers=headers)
    assert not spans.get_finished_spans()
    assert "trace_id" not in openmetrics()
    assert published("http_server_request_duration_seconds_count") == 1


def test_without_a_provider_or_endpoint_there_is_no_tracing() -> None:
    """Tracing costs nothing where nobody asked for it."""
    serve("/items/1")
    agent = current_agent()
    assert agent is not None
    assert agent.tracer is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_EXPORTER", "console"),
        ("LOOPSCOPE_TRACES", "off"),
    ],
)
def test_whoever_says_no_to_traces_gets_none(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    """An endpoint in the environment is not enough where a variable asks for something else."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv(name, value)
    test_without_a_provider_or_endpoint_there_is_no_tracing()


def test_a_provider_that_does_nothing_counts_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that set the no-op provider has switched tracing off, endpoint or not."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    set_provider(trace.NoOpTracerProvider())
    test_without_a_provider_or_endpoint_there_is_no_tracing()


def test_a_provider_set_while_starting_up_is_used() -> None:
    """A lifespan handler runs after the agent's start; its provider gets every request."""
    exporters: list[InMemorySpanExporter] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        exporters.append(provide())
        yield

    app = Loopscope(Starlette(routes=[Route("/items/{id}", endpoint)], lifespan=lifespan))

    async def run() -> None:
        incoming: asyncio.Queue[Message] = asyncio.Queue()
        outgoing: asyncio.Queue[Message] = asyncio.Queue()
        living = asyncio.create_task(app({"type": "lifespan"}, incoming.get, outgoing.put))
        await incoming.put({"type": "lifespan.startup"})
        assert (await outgoing.get())["type"] == "lifespan.startup.complete"
        await call(app, "/items/1")
        await incoming.put({"type": "lifespan.shutdown"})
        await living

    asyncio.run(run())
    assert server_span(exporters[0]).name == "GET /items/{id}"


@pytest.mark.parametrize("endpoint_set", [False, True])
def test_a_provider_set_later_is_used_from_the_next_scrape(
    monkeypatch: pytest.MonkeyPatch, endpoint_set: bool
) -> None:
    """Even then no request has to look for one; ours, where there was one, steps back."""
    if endpoint_set:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    app = Loopscope(PlainTextResponse("hello"))

    async def run() -> InMemorySpanExporter:
        await call(app)
        monkeypatch.delenv("OTEL_TRACES_SAMPLER", raising=False)
        spans = provide()
        openmetrics()
        await call(app)
        return spans

    assert server_span(asyncio.run(run())).name == "GET"


class Failing(SpanProcessor):
    """A span processor of the service that is broken, at one end or the other."""

    def __init__(self, *, on_start: bool) -> None:
        self.calls = 0
        self._on_start = on_start

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        self.calls += 1
        if self._on_start:
            raise RuntimeError("broken")

    def on_end(self, span: Any) -> None:
        raise RuntimeError("broken")


@pytest.mark.quiet_faults
@pytest.mark.parametrize("on_start", [True, False])
def test_tracing_that_keeps_failing_is_switched_off_alone(
    monkeypatch: pytest.MonkeyPatch, on_start: bool
) -> None:
    """A broken span processor costs the spans, never a request nor its figures."""
    monkeypatch.setattr(Faults, "TOLERANCE", 3)
    broken = Failing(on_start=on_start)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(broken)
    set_provider(provider)
    app = Loopscope(PlainTextResponse("hello"))

    async def five() -> None:
        for _ in range(5):
            assert (await call(app)).status == 200

    asyncio.run(five())
    assert broken.calls == 3
    assert published("http_server_request_duration_seconds_count") == 5
