"""What a window says about the service: one row a route, and the whole. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import reduce

from demo_app.histogram import EMPTY, Histogram
from demo_app.scenarios import WEBSOCKET, Endpoint
from demo_app.scrape import Window

_ENDPOINT = ("http_request_method", "http_route")
_AFTERWARDS = "background"  # what comes after the last byte
_DURATION = "http_server_request_duration_seconds"


class Kind(Enum):
    """How a route answers; what stays open has a lifetime rather than a latency."""

    REQUEST = "request"
    STREAM = "event stream"
    WEBSOCKET = "WebSocket"


@dataclass(frozen=True)
class RouteFigures:
    """One route in one window. Times in seconds."""

    endpoint: Endpoint
    kind: Kind
    seconds: float
    requests: int
    client_errors: int
    server_errors: int
    duration: Histogram
    first_byte: Histogram
    longest_step: Histogram
    phases: Mapping[str, float]
    """Seconds by phase, which add up to ``spent_s``. WebSockets have none."""
    spent_s: float
    """Seconds all requests took, to their last byte."""

    @property
    def loop_s(self) -> float:
        """Seconds held on the event loop."""
        return self.phases.get("loop_run", 0.0)

    @property
    def rate(self) -> float:
        """Requests (or connections) a second."""
        return self.requests / self.seconds

    @property
    def loop_share(self) -> float:
        """The part of the window during which this route held the event loop, 0 to 1."""
        return self.loop_s / self.seconds


@dataclass(frozen=True)
class Figures:
    """All routes, the busiest on the loop first, and the process they ran in."""

    seconds: float
    routes: tuple[RouteFigures, ...]
    outcomes: Mapping[str, int]
    cpu_share: float
    agent_errors: int
    agent_share: float

    @property
    def requests(self) -> int:
        """Requests, streams and WebSockets together."""
        return sum(route.requests for route in self.routes)

    @property
    def loop_share(self) -> float:
        """The part of the window during which any request held the event loop, 0 to 1."""
        return sum(route.loop_share for route in self.routes)

    def by_endpoint(self) -> Counter[Endpoint]:
        """The server's own count of what it answered."""
        counts: Counter[Endpoint] = Counter()
        for route in self.routes:
            counts[route.endpoint] += route.requests
        return counts

    def latency(self) -> tuple[Histogram, Histogram]:
        """Time to the first and to the last byte over all requests that are not kept open."""
        requests = [route for route in self.routes if route.kind is Kind.REQUEST]
        return (
            _merged(route.first_byte for route in requests),
            _merged(route.duration for route in requests),
        )


def read(window: Window) -> Figures:
    """The figures of a window; routes nobody asked for are left out."""
    routes = [*_http(window), *_websockets(window)]
    outcomes = window.sums("loopscope_request_outcomes_total", "outcome")
    return Figures(
        window.seconds,
        tuple(sorted(routes, key=lambda route: route.loop_s, reverse=True)),
        {outcome: round(count) for (outcome,), count in outcomes.items() if count},
        window.total("process_cpu_seconds_total") / window.seconds,
        round(window.total("loopscope_agent_errors_total")),
        window.total("loopscope_agent_overhead_seconds_total") / window.seconds,
    )


def _http(window: Window) -> Iterator[RouteFigures]:
    latencies = window.histograms(_DURATION, *_ENDPOINT)
    lifetimes = window.histograms("loopscope_stream_duration_seconds", *_ENDPOINT)
    first_bytes = window.histograms("loopscope_request_time_to_first_byte_seconds", *_ENDPOINT)
    steps = window.histograms("loopscope_request_longest_step_seconds", *_ENDPOINT)
    classes = _by_class(window)
    phases = _phases(window)
    for endpoint in map(Endpoint._make, latencies.keys() | lifetimes.keys()):
        latency, lifetime = latencies.get(endpoint, EMPTY), lifetimes.get(endpoint, EMPTY)
        yield RouteFigures(
            endpoint,
            Kind.STREAM if lifetime.count else Kind.REQUEST,
            window.seconds,
            round(latency.count + lifetime.count),
            classes[endpoint, "4"],
            classes[endpoint, "5"],
            lifetime if lifetime.count else latency,
            first_bytes.get(endpoint, EMPTY),
            steps.get(endpoint, EMPTY),
            phases.get(endpoint, {}),
            latency.total + lifetime.total,
        )


def _websockets(window: Window) -> Iterator[RouteFigures]:
    closes = window.sums("loopscope_websocket_closes_total", "http_route", "initiator")
    lifetimes = window.histograms("loopscope_websocket_duration_seconds", "http_route")
    for (route,), lifetime in lifetimes.items():
        endpoint = Endpoint(WEBSOCKET, route)
        yield RouteFigures(
            endpoint,
            Kind.WEBSOCKET,
            window.seconds,
            round(lifetime.count),
            client_errors=0,
            server_errors=round(closes.get((route, "error"), 0.0)),
            duration=lifetime,
            first_byte=EMPTY,
            longest_step=EMPTY,
            phases={},
            spent_s=lifetime.total,
        )


def _phases(window: Window) -> Mapping[Endpoint, Mapping[str, float]]:
    """Seconds by phase, of what makes up the duration."""
    phases: defaultdict[Endpoint, dict[str, float]] = defaultdict(dict)
    spent = window.sums("loopscope_request_phase_seconds_total", *_ENDPOINT, "phase")
    for (method, route, phase), seconds in spent.items():
        if phase != _AFTERWARDS:
            phases[Endpoint(method, route)][phase] = seconds
    return phases


def _by_class(window: Window) -> Counter[tuple[Endpoint, str]]:
    """Answers by endpoint and class of status: "2", "4", "5"."""
    classes: Counter[tuple[Endpoint, str]] = Counter()
    by_status = window.sums(f"{_DURATION}_count", *_ENDPOINT, "http_response_status_code")
    for (method, route, status), count in by_status.items():
        classes[Endpoint(method, route), status[:1]] += round(count)
    return classes


def _merged(histograms: Iterable[Histogram]) -> Histogram:
    return reduce(Histogram.__add__, histograms, EMPTY)
