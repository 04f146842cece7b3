"""Spans of requests through the middleware, in memory and over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.util._once import Once
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent, stop_agent
from tests.harness import call, published

PARENT = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


def set_provider(provider: Any) -> None:
    """OpenTelemetry lets a provider be set once; tests need it more often."""
    trace._TRACER_PROVIDER_SET_ONCE = Once()
    trace._TRACER_PROVIDER = provider


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    """A provider the service has set up itself; what it exports."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_provider(provider)
    yield exporter
    stop_agent()
    provider.shutdown()
    set_provider(None)


async def endpoint(request: Request) -> Response:
    match request.path_params["id"]:
        case "broken":
            raise LookupError("no")
        case "missing":
            raise HTTPException(404)
    with trace.get_tracer("service").start_as_current_span("inner"):
        await asyncio.sleep(0)
    return PlainTextResponse("hello")


def serve(path: str, **more: Any) -> None:
    app = Loopscope(Starlette(routes=[Route("/items/{id}", endpoint)]))
    asyncio.run(call(app, path, **more))


def server_span(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = [s for s in spans.get_finished_spans() if s.kind is SpanKind.SERVER]
    return span


def test_a_request_is_one_server_span(spans: InMemorySpanExporter) -> None:
    """Name, kind and attributes are those of the stable conventions; no query string."""
    serve("/items/1", query_string=b"secret=1")
    span = server_span(spans)
    assert span.name == "GET /items/{id}"
    assert span.attributes is not None
    assert span.attributes["http.route"] == "/items/{id}"
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["url.path"] == "/items/1"
    assert "secret" not in str(dict(span.attributes))


def test_the_services_own_spans_nest_under_it(spans: InMemorySpanExporter) -> None:
    """What the service traces inside a request is a child of the request's span."""
    serve("/items/1")
    (inner,) = [s for s in spans.get_finished_spans() if s.name == "inner"]
    assert inner.parent is not None
    assert inner.parent.span_id == server_span(spans).context.span_id


def test_a_w3c_parent_is_honoured(spans: InMemorySpanExporter) -> None:
    """A traceparent header makes the span part of its caller's trace."""
    serve("/items/1", headers=[(b"traceparent", PARENT.encode())])
    span = server_span(spans)
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == PARENT.split("-")[1]
    assert f"{span.parent.span_id:016x}" == PARENT.split("-")[2]


def test_the_span_lasts_as_long_as_the_published_duration(spans: InMemorySpanExporter) -> None:
    """The span's end is the last body byte, as in the histogram."""
    serve("/items/1")
    span = server_span(spans)
    assert span.end_time is not None
    assert span.start_time is not None
    seconds = (span.end_time - span.start_time) / 1e9
    assert seconds == pytest.approx(published("http_server_request_duration_seconds_sum"), abs=2e-6)


def test_errors_and_only_errors_are_errors(spans: InMemorySpanExporter) -> None:
    """An exception sets the status and error.type; a 404 does not."""
    with pytest.raises(LookupError):
        serve("/items/broken")
    span = server_span(spans)
    assert span.status.status_code is StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["error.type"] == "LookupError"
    spans.clear()
    serve("/items/missing")
    assert server_span(spans).status.status_code is StatusCode.UNSET


def test_sampled_requests_leave_exemplars(spans: InMemorySpanExporter) -> None:
    """The duration histogram names the trace of its latest request, in OpenMetrics."""
    serve("/items/1")
    agent = current_agent()
    assert agent is not None
    body = b"".join(agent.render("application/openmetrics-text; version=1.0.0")[0]).decode()
    assert f'trace_id="{server_span(spans).context.trace_id:032x}"' in body


def test_without_a_provider_or_endpoint_there_is_no_tracing() -> None:
    """Tracing costs nothing where nobody asked for it."""
    serve("/items/1")
    agent = current_agent()
    assert agent is not None
    assert agent.tracer is None


def test_an_otlp_endpoint_in_the_environment_gets_the_spans(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With only OTEL_* set, spans arrive at the collector as protobuf over HTTP."""
    received: list[ExportTraceServiceRequest] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Quiet."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            endpoint = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
            monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
            serve("/items/1")
            stop_agent()  # sends what is left
        finally:
            server.shutdown()
            thread.join()
    (resource,) = [each for request in received for each in request.resource_spans]
    names = [span.name for scope in resource.scope_spans for span in scope.spans]
    assert names == ["GET /items/{id}"]
    attributes = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert attributes["service.name"] == "shop"
