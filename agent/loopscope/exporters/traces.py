"""Traces: one SERVER span a request, by OpenTelemetry's stable HTTP conventions.

A provider the service has set up is used and never replaced; without one, and with an OTLP endpoint
in the environment, a provider of our own exports there. Off in every other case. The span ends with
the last body byte, so its duration equals the published one.

Private by default: no query string, no headers but the user agent.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from contextvars import Token
from dataclasses import dataclass
from typing import Any, Protocol

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import ProxyTracerProvider, Span, SpanKind, Status, StatusCode

from loopscope._version import __version__
from loopscope.core.clock import Clock

logger = logging.getLogger("loopscope")

Key = tuple[str, str, int, str, str]
"""Route, method, status (0: none), error type, outcome."""

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_EXPORTERS = {
    "http/protobuf": ("opentelemetry.exporter.otlp.proto.http.trace_exporter", "loopscope[otlp]"),
    "grpc": (
        "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
        "opentelemetry-exporter-otlp-proto-grpc",
    ),
}
_METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)


class Request(Protocol):
    """What a span needs to know of a request. Moments are readings of the clock; 0.0 is never."""

    scope: Any
    started: float
    last_byte: float


@dataclass(slots=True)
class RequestSpan:
    """A span under way and the context it was made current in."""

    span: Span
    token: Token[Context] | None


class _Headers(Getter[Mapping[str, Any]]):
    """Reads header values out of an ASGI scope."""

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        name = key.lower().encode()
        found = [v.decode("latin-1") for k, v in carrier.get("headers", ()) if k.lower() == name]
        return found or None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return [name.decode("latin-1") for name, _ in carrier.get("headers", ())]


_HEADERS = _Headers()


class TraceExporter:
    """Begins and ends spans on ``provider``; ``owned`` says that it is ours to shut down."""

    def __init__(self, clock: Clock, provider: trace.TracerProvider, *, owned: bool) -> None:
        self._clock = clock
        self._provider = provider
        self._owned = owned
        self._tracer = provider.get_tracer("loopscope", __version__)

    def begin(self, exchange: Request) -> RequestSpan:
        """Start the span and make it current, so that the service's own spans nest under it."""
        scope = exchange.scope
        parent = propagate.extract(scope, getter=_HEADERS)
        span = self._tracer.start_span(
            scope["method"] if scope["method"] in _METHODS else "HTTP",
            context=parent,
            kind=SpanKind.SERVER,
            attributes=_attributes(scope),
            start_time=self._nanoseconds(exchange.started),
        )
        return RequestSpan(span, context.attach(trace.set_span_in_context(span, parent)))

    def end(self, span: object, exchange: Request, ended: float, key: Key) -> None:
        """End the span at the last body byte, or at ``ended`` where there was none."""
        assert isinstance(span, RequestSpan)
        self._detach(span)
        if span.span.is_recording():
            _describe(span.span, key)
        span.span.end(self._nanoseconds(exchange.last_byte or ended))

    def exemplar(self, span: object) -> tuple[int, int] | None:
        """Trace and span id where the span is sampled."""
        assert isinstance(span, RequestSpan)
        ids = span.span.get_span_context()
        return (ids.trace_id, ids.span_id) if ids.trace_flags.sampled else None

    def stop(self) -> None:
        """Send what is left and shut down a provider of ours; leave the service's alone."""
        if self._owned and isinstance(self._provider, TracerProvider):
            self._provider.shutdown()

    def _nanoseconds(self, moment: float) -> int:
        return int(self._clock.wall(moment) * 1e9)

    @staticmethod
    def _detach(span: RequestSpan) -> None:
        """Restore the context only where it was set: a coroutine closed elsewhere has another."""
        if span.token is not None and trace.get_current_span() is span.span:
            context.detach(span.token)
        span.token = None


def make_tracer(clock: Clock, service: str, environ: Mapping[str, str]) -> TraceExporter | None:
    """Tracing as the process is configured, or None where it is not."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if not isinstance(trace.get_tracer_provider(), ProxyTracerProvider):
        return TraceExporter(clock, trace.get_tracer_provider(), owned=False)
    if environ.get("OTEL_TRACES_EXPORTER") == "none" or not any(map(environ.get, _ENDPOINTS)):
        return None
    exporter = _otlp_exporter(environ)
    if exporter is None:
        return None
    resource = Resource.create({SERVICE_NAME: service} if service else None)
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return TraceExporter(clock, provider, owned=True)


def _otlp_exporter(environ: Mapping[str, str]) -> SpanExporter | None:
    protocol = environ.get(
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
        environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    )
    module, package = _EXPORTERS.get(protocol, _EXPORTERS["http/protobuf"])
    try:
        exporter: SpanExporter = importlib.import_module(module).OTLPSpanExporter()
    except ImportError:
        logger.warning(
            "loopscope: an OTLP endpoint is set, but its exporter is not installed, so no traces "
            "are sent. Install it with: pip install '%s'",
            package,
        )
        return None
    return exporter


def _attributes(scope: Mapping[str, Any]) -> dict[str, str | int]:
    method = scope["method"]
    attributes: dict[str, str | int] = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "url.path": scope["path"],
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
    }
    if method not in _METHODS:
        attributes["http.request.method_original"] = method
    agent = _HEADERS.get(scope, "user-agent")
    if agent:
        attributes["user_agent.original"] = agent[0]
    if scope.get("client"):
        attributes["client.address"] = scope["client"][0]
    if scope.get("server"):
        address, port = scope["server"]
        attributes["server.address"] = address
        if port is not None:
            attributes["server.port"] = port
    return attributes


def _describe(span: Span, key: Key) -> None:
    route, method, status, error_type, outcome = key
    if not route.startswith("_"):
        span.update_name(f"{'HTTP' if method == '_OTHER' else method} {route}")
        span.set_attribute("http.route", route)
    if status:
        span.set_attribute("http.response.status_code", status)
    span.set_attribute("loopscope.outcome", outcome)
    if outcome == "error":
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR))
