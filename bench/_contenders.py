"""What is compared: each function adds one way of measuring requests to an application.

Each returns how to ask it how many requests it has recorded, so that a contender that quietly
stopped recording can't win. Libraries are imported inside, so a process loads only its own, and
one that is missing is listed as such instead of failing the run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from _net import fetch, free_port, total

UNUSABLE = (ImportError, SyntaxError)
"""What a contender raises whose library is missing, or not made for this Python."""

Count = Callable[[], float]
"""Asks a contender how many requests it has recorded."""


def bare(app: Starlette) -> None:
    """The application alone."""


class _Nothing:
    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def nothing(app: Starlette) -> None:
    """A pure ASGI middleware that only calls on: the floor for any middleware in Python."""
    app.add_middleware(_Nothing)


def loopscope(app: Starlette) -> Count:
    """Loopscope with everything that is on by default, its admin listener included."""
    from loopscope import Loopscope

    listen = f"127.0.0.1:{free_port()}"
    app.add_middleware(Loopscope, listen=listen)
    return lambda: total(
        fetch(f"http://{listen}/metrics"), "http_server_request_duration_seconds_count"
    )


def prometheus_client(app: Starlette) -> Count:
    """What a careful team writes itself: duration, count and requests in flight, with labels."""
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

    registry = CollectorRegistry()
    labels = ("method", "route", "status")
    duration = Histogram("request_duration_seconds", "Duration.", labels, registry=registry)
    requests = Counter("requests", "Requests.", labels, registry=registry)
    in_flight = Gauge("requests_in_flight", "In flight.", ("method",), registry=registry)

    class ByHand:
        def __init__(self, app: ASGIApp) -> None:
            self.app = app

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return await self.app(scope, receive, send)
            status = 500
            started = time.perf_counter()

            async def note_status(message: Message) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            serving = in_flight.labels(scope["method"])
            serving.inc()
            try:
                await self.app(scope, receive, note_status)
            finally:
                serving.dec()
                route = getattr(scope.get("route"), "path", "unmatched")
                values = (scope["method"], route, str(status))
                duration.labels(*values).observe(time.perf_counter() - started)
                requests.labels(*values).inc()

    app.add_middleware(ByHand)
    return lambda: total(generate_latest(registry).decode(), "requests_total")


def instrumentator(app: Starlette) -> Count:
    """prometheus-fastapi-instrumentator as its README shows it."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_fastapi_instrumentator import Instrumentator

    registry = CollectorRegistry()
    Instrumentator(registry=registry).instrument(app)
    return lambda: total(generate_latest(registry).decode(), "http_requests_total")


def starlette_exporter(app: Starlette) -> Count:
    """starlette_exporter as its README shows it."""
    from prometheus_client import generate_latest
    from starlette_exporter import PrometheusMiddleware

    app.add_middleware(PrometheusMiddleware)
    return lambda: total(generate_latest().decode(), "starlette_requests_total")


def otel_metrics(app: Starlette) -> Count:
    """opentelemetry-instrumentation-asgi with metrics only."""
    from opentelemetry.trace import NoOpTracerProvider

    return _otel(app, NoOpTracerProvider())


def otel_spans(app: Starlette) -> Count:
    """opentelemetry-instrumentation-asgi with metrics and spans: all sampled, none exported."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    return _otel(app, TracerProvider(sampler=ALWAYS_ON))


def _otel(app: Starlette, tracer_provider: object) -> Count:
    # The stable HTTP conventions alone; the default is their predecessor.
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "http"
    from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    app.add_middleware(
        OpenTelemetryMiddleware,
        tracer_provider=tracer_provider,
        meter_provider=MeterProvider(metric_readers=[reader]),
    )
    return lambda: _otel_total(reader, "http.server.request.duration")


def _otel_total(reader: object, name: str) -> float:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader

    assert isinstance(reader, InMemoryMetricReader)
    data = reader.get_metrics_data()
    if data is None:
        return 0.0
    return float(
        sum(
            point.count
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        )
    )


CONTENDERS: dict[str, Callable[[Starlette], Count | None]] = {
    "bare": bare,
    "bare-again": bare,
    "nothing": nothing,
    "loopscope": loopscope,
    "prometheus-client": prometheus_client,
    "instrumentator": instrumentator,
    "starlette-exporter": starlette_exporter,
    "otel-metrics": otel_metrics,
    "otel-spans": otel_spans,
}
"""By the name used on the command line. "bare-again" shows how far two equal processes differ."""
