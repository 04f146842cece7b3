"""Services that are traced already: one server span a request, whoever makes it."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from fastapi import FastAPI
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    ParentBased,
    Sampler,
    SamplingResult,
)
from opentelemetry.trace import SpanKind
from starlette.responses import PlainTextResponse

from loopscope import Loopscope
from tests.exporters.providers import make_provider, set_provider
from tests.harness import Message, call, published, scraped

pytest.importorskip("fastapi.telemetry", reason="this FastAPI does not trace by itself")


class Fickle(Sampler):
    """Says no when first asked about a trace, and yes from then on."""

    def __init__(self) -> None:
        self._answers = iter([ALWAYS_OFF])

    def should_sample(self, *args: Any, **more: Any) -> SamplingResult:
        return next(self._answers, ALWAYS_ON).should_sample(*args, **more)

    def get_description(self) -> str:
        return "fickle"


class Service:
    """A FastAPI app and what the process' provider exported."""

    def __init__(self, sampler: Sampler = ALWAYS_ON, **telemetry: Any) -> None:
        self.provider, self.exporter = make_provider(sampler)
        self.app = FastAPI(telemetry=cast("Any", telemetry))
        self.app.get("/items/{number}")(self.item)

    async def item(self, number: int) -> int:
        with trace.get_tracer("service").start_as_current_span("inner"):
            return number

    def serve(self, app: Any) -> ReadableSpan:
        """One request; its only server span, which every other span must belong to."""
        assert asyncio.run(call(app, "/items/1")).status == 200
        spans = self.exporter.get_finished_spans()
        (server,) = [span for span in spans if span.kind is SpanKind.SERVER]
        assert {span.context.trace_id for span in spans} == {server.context.trace_id}
        assert "inner" in [span.name for span in spans]
        return server


@pytest.fixture
def service() -> Service:
    service = Service()
    set_provider(service.provider)
    return service


def maker(span: ReadableSpan) -> str:
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name


def exemplars() -> str:
    text = scraped("application/openmetrics-text; version=1.0.0")
    return "\n".join(line for line in text.splitlines() if "trace_id" in line)


def test_fastapis_span_around_us_is_the_only_one(service: Service) -> None:
    """Added to a FastAPI that traces by itself, we make no span and point exemplars at its own."""
    service.app.add_middleware(Loopscope)
    span = service.serve(service.app)
    assert maker(span) == "fastapi"
    assert f'trace_id="{span.context.trace_id:032x}"' in exemplars()


def test_fastapis_span_is_found_behind_other_spans(service: Service) -> None:
    """A middleware between FastAPI's span and us may open a span of its own."""

    class Between:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, *args: Any) -> None:
            with trace.get_tracer("service").start_as_current_span("between"):
                await self.app(*args)

    service.app.add_middleware(Loopscope)
    service.app.add_middleware(Between)
    assert maker(service.serve(service.app)) == "fastapi"


def test_fastapis_span_inside_us_is_the_only_one(service: Service) -> None:
    """Wrapped around a FastAPI that traces by itself, however deep, we make no span either."""

    class Between:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, *args: Any) -> None:
            await self.app(*args)

    assert maker(service.serve(Loopscope(Between(service.app)))) == "fastapi"
    assert published("http_server_request_duration_seconds_count") == 1


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_fastapi_told_not_to_trace_gets_our_span(wrapped: bool) -> None:
    """``telemetry={"tracing": False}`` leaves the request's span to us, with everything below."""
    service = Service(tracing=False)
    set_provider(service.provider)
    app: Any = Loopscope(service.app)
    if not wrapped:
        app = service.app
        app.add_middleware(Loopscope)
    span = service.serve(app)
    assert maker(span) == "loopscope"
    assert span.name == "GET /items/{number}"


def test_a_request_fastapi_did_not_sample_stays_unsampled() -> None:
    """Our sampler is not asked again about a request that somebody has decided upon."""
    service = Service(ParentBased(root=Fickle()))
    set_provider(service.provider)
    service.app.add_middleware(Loopscope)
    asyncio.run(call(service.app, "/items/1"))
    assert not service.exporter.get_finished_spans()
    assert not exemplars()


def instrumented(app: Any) -> Any:
    """``app`` below OpenTelemetry's ASGI middleware."""
    asgi = pytest.importorskip("opentelemetry.instrumentation.asgi")
    return asgi.OpenTelemetryMiddleware(app, exclude_spans=["receive", "send"])


async def plain(scope: Message, receive: Any, send: Any) -> None:
    with trace.get_tracer("service").start_as_current_span("inner"):
        await PlainTextResponse("hello")(scope, receive, send)


def test_the_asgi_instrumentations_span_around_us_is_the_only_one(service: Service) -> None:
    """Below OpenTelemetry's own middleware we make no span and point exemplars at its own."""
    span = service.serve(instrumented(Loopscope(plain)))
    assert maker(span) == "opentelemetry.instrumentation.asgi"
    assert f'trace_id="{span.context.trace_id:032x}"' in exemplars()


def test_the_asgi_instrumentation_inside_us_makes_no_server_span(service: Service) -> None:
    """Above OpenTelemetry's own middleware the server span is ours, and its spans go below."""
    assert maker(service.serve(Loopscope(instrumented(plain)))) == "loopscope"


def test_a_request_the_asgi_instrumentation_did_not_sample_stays_unsampled() -> None:
    """The span around us that is not recorded is a decision too."""
    service = Service(ParentBased(root=Fickle()))
    set_provider(service.provider)
    asyncio.run(call(instrumented(Loopscope(plain))))
    assert not service.exporter.get_finished_spans()
    assert not exemplars()
