"""Spans on their way to a collector: what arrives, and what it costs when nothing can."""

from __future__ import annotations

import asyncio
import gzip
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from starlette.responses import PlainTextResponse

from loopscope import Loopscope
from loopscope.agent import stop_agent
from loopscope.exporters.traces import TraceExporter
from tests.harness import call, published


class Collector(ThreadingHTTPServer):
    """Takes spans over HTTP. Answers as long as its gate is open."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_port}"
        self.gate = threading.Event()
        self.gate.set()
        self.asked = threading.Event()
        self.encodings: list[str | None] = []
        self.received: list[ExportTraceServiceRequest] = []

    def names(self) -> list[str]:
        """Of all spans that arrived."""
        return [
            span.name
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        encoding = self.headers["content-encoding"]
        self.server.asked.set()
        self.server.gate.wait()
        self.server.encodings.append(encoding)
        self.server.received.append(
            ExportTraceServiceRequest.FromString(
                gzip.decompress(body) if encoding == "gzip" else body
            )
        )
        self.send_response(200)
        self.send_header("content-type", "application/x-protobuf")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector that the environment names, as it would in a deployment."""
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.endpoint)
        yield server
        server.gate.set()
        stop_agent()
        server.shutdown()
        thread.join()


def serve(times: int = 1) -> None:
    """So many requests, all of which must succeed."""
    app = Loopscope(PlainTextResponse("hello"))

    async def run() -> None:
        for _ in range(times):
            assert (await call(app)).status == 200

    asyncio.run(run())


@pytest.mark.parametrize("compression", [None, "gzip"])
def test_an_otlp_endpoint_in_the_environment_gets_the_spans(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, compression: str | None
) -> None:
    """With only OTEL_* set, all spans are at the collector by the time the agent has stopped."""
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop")
    if compression is not None:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", compression)
    serve(3)
    stop_agent()
    assert collector.names() == ["GET"] * 3
    assert collector.encodings == [compression]
    (request,) = collector.received
    resource = request.resource_spans[0].resource
    attributes = {each.key: each.value.string_value for each in resource.attributes}
    assert attributes["service.name"] == "shop"


def test_an_exit_handler_that_may_start_no_thread_sends_the_spans_all_the_same(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some versions of Python refuse threads at exit; the last spans arrive there too."""
    serve()

    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "loopscope-traces":
            raise RuntimeError("can't create new thread at interpreter shutdown")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    stop_agent()
    assert collector.names() == ["GET"]


def test_a_collector_that_does_not_answer_holds_up_neither_requests_nor_the_stop(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests go on with the queue full, and the stop gives up waiting and says so."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "2")
    monkeypatch.setattr(TraceExporter, "PATIENCE", 0.0)
    collector.gate.clear()
    serve(2)
    assert collector.asked.wait(60.0)
    serve(200)
    assert published("http_server_request_duration_seconds_count") == 202
    assert len(caplog.records) < 10
    caplog.clear()
    stop_agent()
    assert not collector.received
    assert "not taken the last spans" in caplog.text


def test_a_collector_that_is_down_harms_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody listens: requests succeed, and the log has a line a batch, not a request."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        host, port = taken.getsockname()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://{host}:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.1")
        serve(100)
        stop_agent()
    assert caplog.records
    assert len(caplog.records) < 10


def test_grpc_takes_the_spans_where_its_exporter_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """OTEL_EXPORTER_OTLP_PROTOCOL decides how spans travel."""
    grpc = pytest.importorskip("grpc")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc")
    received: list[ExportTraceServiceRequest] = []

    def export(request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        received.append(request)
        return ExportTraceServiceResponse()

    handler = grpc.unary_unary_rpc_method_handler(
        export,
        request_deserializer=ExportTraceServiceRequest.FromString,
        response_serializer=ExportTraceServiceResponse.SerializeToString,
    )
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {"Export": handler})]
        )
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        serve(3)
        stop_agent()
        server.stop(None).wait()
    assert sum(len(r.resource_spans[0].scope_spans[0].spans) for r in received) == 3


def test_a_missing_exporter_is_said_once_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever asks for gRPC, which is no dependency of ours, reads what to install."""
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.grpc.trace_exporter", None)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with caplog.at_level(logging.WARNING, "loopscope"):
        serve(3)
        published("http_server_request_duration_seconds_count")
    (record,) = caplog.records
    assert "pip install 'opentelemetry-exporter-otlp-proto-grpc'" in record.message
