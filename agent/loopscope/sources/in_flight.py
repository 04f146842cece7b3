"""What is under way right now, counted from the live exchanges themselves.

Gauges kept by adding and subtracting one drift when an end is missed; these are counted anew at
every reading, so they cannot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from loopscope.core.histogram import Number
from loopscope.core.metric import Metric
from loopscope.core.page import Page
from loopscope.sources.requests import METHODS, OTHER

_BY_METHOD = ("http_request_method", "url_scheme")

SERVING = Metric(
    "http_server_active_requests",
    "gauge",
    "Requests being served: called, last body byte not yet sent.",
    _BY_METHOD,
)
IN_BACKGROUND = Metric(
    "loopscope_background_requests",
    "gauge",
    "Requests whose response is complete but whose task still runs (background tasks).",
    _BY_METHOD,
)
WEBSOCKETS = Metric(
    "loopscope_websocket_active",
    "gauge",
    "WebSocket sessions that are open.",
    ("http_route",),
)

METRICS = (SERVING, IN_BACKGROUND, WEBSOCKETS)

_SCHEMES = ("http", "https")
_COMMONEST = ("GET", "http")
"""There from the start: an idle service shows a zero, not the absence of data."""


class LiveRequest(Protocol):
    """A request under way; ``last_byte`` is 0.0 until its response is complete."""

    scope: Any
    last_byte: float


class LiveSession(Protocol):
    """A WebSocket session under way; ``route`` is empty until it is accepted."""

    route: str


class InFlightSource:
    """Counts live exchanges; ``requests`` and ``sessions`` list them."""

    def __init__(
        self,
        page: Page,
        requests: Callable[[], Iterable[LiveRequest]],
        sessions: Callable[[], Iterable[LiveSession]],
    ) -> None:
        self._page = page
        self._requests = requests
        self._sessions = sessions
        self._gauges: dict[tuple[Metric, tuple[str, ...]], Number] = {}
        for metric in (SERVING, IN_BACKGROUND):
            self._gauge(metric, _COMMONEST)

    def refresh(self) -> None:
        """Count anew. Label sets seen before and empty now go to zero."""
        counts: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
        for request in self._requests():
            metric = IN_BACKGROUND if request.last_byte else SERVING
            counts[metric, _labels(request)] += 1
        for session in self._sessions():
            if session.route:
                counts[WEBSOCKETS, (session.route,)] += 1
        for key in counts.keys() - self._gauges.keys():
            self._gauge(*key)
        for key, gauge in self._gauges.items():
            gauge.set(counts[key])

    def _gauge(self, metric: Metric, labels: tuple[str, ...]) -> None:
        number = Number(self._page.slots, self._page.allocate(metric, labels))
        self._gauges[metric, labels] = number


def _labels(request: LiveRequest) -> tuple[str, str]:
    method = request.scope.get("method")
    scheme = request.scope.get("scheme")
    return (
        method if method in METHODS else OTHER,
        scheme if scheme in _SCHEMES else OTHER,
    )
