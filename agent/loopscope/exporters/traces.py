"""Traces: one SERVER span a request, by OpenTelemetry's stable HTTP conventions.

A WebSocket session has one as well; ``session_spans`` says what is in it.

A provider the service has set up is used and never replaced; without one, and with an OTLP endpoint
in the environment, a provider of our own exports there, until the service sets one up after all.
Off in every other case. The span ends with the last body byte, so its duration equals the published
one. Whatever kept a response from its client is an error to the conventions, a client that left and
a cancelled request included; ``error.type`` and ``loopscope.outcome`` say which it was.

One span, not two. A service may be traced already, and then its spans stay as they are and we make
none:

- FastAPI traces by itself once there is a provider. Inside of it (``add_middleware``) its span is
  found in the scope; around it (``Loopscope(app)``) it is known to come, though not by which id, so
  these requests leave no exemplars.
- OpenTelemetry's ASGI instrumentation, or whatever else has a SERVER span under way around us, is
  found as the current span. Inside of us it makes internal spans below ours.
- A middleware that opens another span between such a one and us hides it. Then there are two.

The span that is reused gives the exemplars; it is neither described nor ended by us. A local span
that is not sampled has decided for us as well.

Private by default: no query string, no header, and of an exception its type and where it came from,
not its message, which may quote what the request carried.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from contextvars import Token
from dataclasses import dataclass
from traceback import format_tb
from typing import Any, Protocol, cast

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    NoOpTracerProvider,
    ProxyTracerProvider,
    Span,
    SpanKind,
    Status,
    StatusCode,
)

from loopscope._version import __version__
from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.exporters import session_spans
from loopscope.exporters.session_spans import Session

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
_OURS = context.create_key("loopscope-span")
"""Where a context has the span we made current in it."""

_FRAMES = 50
"""How many frames of an exception's traceback are kept: the innermost ones."""

_NESTING = 32
"""How many middlewares deep a FastAPI is looked for."""


class Request(Protocol):
    """What a span needs to know of a request. Moments are readings of the clock; 0.0 is never."""

    scope: Any
    started: float
    last_byte: float

    @property
    def app(self) -> object:
        """The application that is going to answer it."""


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """A span under way. ``token`` restores the context before it; None: it is not our span."""

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
    """Begins and ends spans on ``provider``, which is ours to shut down if it has a ``sender``."""

    PATIENCE = 2.0
    """Seconds a shutdown may wait for the collector to take the last spans."""

    def __init__(
        self,
        clock: Clock,
        provider: trace.TracerProvider,
        faults: Faults,
        sender: SpanExporter | None = None,
    ) -> None:
        self.owned = sender is not None
        self._clock = clock
        self._provider = provider
        self._faults = faults
        self._sender = sender
        self._tracer = provider.get_tracer("loopscope", __version__)

    def begin(self, exchange: Request) -> RequestSpan | None:
        """Start the span and make it current, so that the service's own spans nest under it.

        None where the application is going to make its own, or where tracing failed too often.
        """
        method = exchange.scope["method"]
        return self._begin(exchange, method if method in _METHODS else "HTTP", _attributes)

    def begin_session(self, session: Session) -> RequestSpan | None:
        """The same for a WebSocket session."""
        return self._begin(session, session_spans.NAME, _session_attributes)

    def _begin(
        self,
        exchange: Request | Session,
        name: str,
        attributes: Callable[[Mapping[str, Any]], dict[str, str | int]],
    ) -> RequestSpan | None:
        if self._faults.is_off("traces") or _traces_itself(exchange.app):
            return None
        scope = exchange.scope
        other = _span_around(scope)
        if other is not None:
            return RequestSpan(other, None)
        # The caller's span is the only parent: what is current here may be the request before on
        # the same connection, or what the whole server was started in.
        around = trace.set_span_in_context(INVALID_SPAN, context.get_current())
        parent = propagate.extract(scope, around, getter=_HEADERS)
        span = self._tracer.start_span(
            name,
            context=parent,
            kind=SpanKind.SERVER,
            attributes=attributes(scope),
            start_time=self._nanoseconds(exchange.started, exchange.started),
        )
        inside = context.set_value(_OURS, span, trace.set_span_in_context(span, parent))
        return RequestSpan(span, context.attach(inside))

    def end(self, span: object, exchange: Request, ended: float, key: Key) -> None:
        """End the span at the last body byte, or at ``ended`` where there was none."""
        assert isinstance(span, RequestSpan)
        if span.token is None:
            return
        try:
            _leave(span.span, span.token)
            if span.span.is_recording():
                _describe(span.span, key)
                kind, outcome = key[3:]
                if outcome == "error":
                    at = self._nanoseconds(exchange.started, ended)
                    _record_exception(span.span, kind, at)
            last_byte = exchange.last_byte or ended
            span.span.end(self._nanoseconds(exchange.started, last_byte))
        except Exception as error:
            self._faults.report("traces", error)

    def end_session(
        self, span: object, session: Session, ended: float, route: str, error: str
    ) -> None:
        """End a session's span; ``error`` is the type of what the app raised, or nothing."""
        assert isinstance(span, RequestSpan)
        if span.token is None:
            return
        try:
            _leave(span.span, span.token)
            at = self._nanoseconds(session.started, ended)
            if span.span.is_recording():
                session_spans.describe(span.span, session, route, error)
                _record_exception(span.span, error, at)
            span.span.end(at)
        except Exception as fault:
            self._faults.report("traces", fault)

    def exemplar(self, span: object) -> tuple[int, int] | None:
        """Trace and span id where the span is sampled."""
        assert isinstance(span, RequestSpan)
        ids = span.span.get_span_context()
        return (ids.trace_id, ids.span_id) if ids.trace_flags.sampled else None

    def stop(self) -> None:
        """Send what is left and shut down a provider of ours; leave the service's alone.

        A collector that is slow or down is waited for no longer than ``PATIENCE``; what it has not
        taken by then is given up.
        """
        if self._sender is None or not isinstance(self._provider, TracerProvider):
            return
        sending = threading.Thread(
            target=self._provider.shutdown, name="loopscope-traces", daemon=True
        )
        try:
            sending.start()
        except RuntimeError:  # CPython 3.12.0 and 3.12.1 start no threads in exit handlers
            self._provider.shutdown()
            return
        sending.join(self.PATIENCE)
        if sending.is_alive():
            logger.warning(
                "loopscope: the collector has not taken the last spans within %g s; they are lost",
                self.PATIENCE,
            )
            self._sender.shutdown()  # no more attempts

    def _nanoseconds(self, started: float, moment: float) -> int:
        """Unix time at ``moment``; its distance to the start is exact."""
        return int(self._clock.wall(started) * 1e9) + round((moment - started) * 1e9)


def provided_tracer(
    clock: Clock, environ: Mapping[str, str], faults: Faults
) -> TraceExporter | None:
    """Tracing on the provider the service has set up, or None as long as it has not."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, ProxyTracerProvider | NoOpTracerProvider):
        return None
    return TraceExporter(clock, provider, faults)


def make_tracer(
    clock: Clock, service: str, environ: Mapping[str, str], faults: Faults
) -> TraceExporter | None:
    """Tracing as the process is configured, or None where it is not."""
    provided = provided_tracer(clock, environ, faults)
    if provided is not None or not _wants_otlp(environ):
        return provided
    exporter = _otlp_exporter(environ)
    if exporter is None:
        return None
    resource = Resource.create({SERVICE_NAME: service} if service else None)
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return TraceExporter(clock, provider, faults, exporter)


def _wants_otlp(environ: Mapping[str, str]) -> bool:
    """Whether the environment asks for OTLP and says where to, and nobody said no to traces."""
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if isinstance(trace.get_tracer_provider(), NoOpTracerProvider):
        return False
    exporters = (environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    return "otlp" in map(str.strip, exporters) and any(map(environ.get, _ENDPOINTS))


def _otlp_exporter(environ: Mapping[str, str]) -> SpanExporter | None:
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", ""
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


def _leave(span: Span, token: Token[Context]) -> None:
    """Restore the context only where it was set: a coroutine closed elsewhere has another."""
    if trace.get_current_span() is span:
        context.detach(token)


def _record_exception(span: Span, kind: str, at: int) -> None:
    """Add the exception that is on its way through the middleware, if it is of this ``kind``."""
    error = sys.exception()
    if error is None or kind.rpartition(".")[2] != type(error).__name__:
        return
    frames = "".join(format_tb(error.__traceback__, -_FRAMES))
    span.add_event(
        "exception",
        {
            "exception.type": kind,
            "exception.stacktrace": f"Traceback (most recent call last):\n{frames}{kind}\n",
        },
        at,
    )


def _span_around(scope: Mapping[str, Any]) -> Span | None:
    """Somebody else's span of this very request, or a local one that was decided not to sample."""
    span: Span = getattr(scope.get("fastapi.telemetry"), "span", None) or trace.get_current_span()
    if span is context.get_value(_OURS):
        return None  # an outer request's, or the one before on the same connection
    if isinstance(span, NonRecordingSpan):
        ids = span.get_span_context()
        return span if ids.is_valid and not ids.is_remote else None
    is_server = getattr(span, "kind", None) is SpanKind.SERVER
    return span if is_server and span.is_recording() else None


def _traces_itself(app: object) -> bool:
    """Whether ``app`` is, or wraps, a FastAPI that makes SERVER spans. Older ones never do."""
    for _ in range(_NESTING):
        found = getattr(app, "_telemetry", None)
        if isinstance(found, dict):
            telemetry = cast("dict[str, Any]", found)
            return bool(telemetry.get("tracing")) and not isinstance(
                telemetry.get("tracer_provider") or trace.get_tracer_provider(),
                ProxyTracerProvider | NoOpTracerProvider,
            )
        app = getattr(app, "app", None)
        if app is None:
            break
    return False


def _attributes(scope: Mapping[str, Any]) -> dict[str, str | int]:
    method = scope["method"]
    attributes: dict[str, str | int] = {
        "http.request.method": method if method in _METHODS else "_OTHER",
        "url.scheme": scope.get("scheme", "http"),
        "network.protocol.version": scope.get("http_version", "1.1"),
        **_places(scope),
    }
    if method not in _METHODS:
        attributes["http.request.method_original"] = method
    return attributes


def _session_attributes(scope: Mapping[str, Any]) -> dict[str, str | int]:
    return {
        "url.scheme": scope.get("scheme", "ws"),
        "network.protocol.name": "websocket",
        **_places(scope),
    }


def _places(scope: Mapping[str, Any]) -> dict[str, str | int]:
    """What was called, by whom, and where."""
    attributes: dict[str, str | int] = {"url.path": scope["path"]}
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
    if outcome != "ok":
        span.set_attribute("error.type", error_type)
        span.set_status(Status(StatusCode.ERROR))
