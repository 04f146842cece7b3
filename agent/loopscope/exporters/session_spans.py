"""What the span of a WebSocket session says.

OpenTelemetry has conventions for the handshake, which is an HTTP request, and none for the session.
The span is the session's, so it is not dressed up as a request: no ``http.request.method``, no
status 101 or 200. Whoever derives request rates and latencies from spans would count an hour of
chat as a slow GET. Its name is ``WS /route``, its ``network.protocol.name`` is ``websocket``, as in
the spans FastAPI makes by itself; where it came from and went to is said in the names of the HTTP
conventions. A session refused with an HTTP response has that response's status.

The close code decides whether the session failed, and as with HTTP only a failure that is ours
makes an error: a client that broke the protocol is no more of one than a 404. A connection that
was cut is one, whoever cut it. Codes from 3000 are the application's: it alone knows their meaning.
"""

from __future__ import annotations

from typing import Any, Protocol

from opentelemetry.trace import Span, Status, StatusCode

NAME = "WS"
"""In place of a method."""

_CUT = 1006
_OUR_FAULT = {
    "server": frozenset((_CUT, 1011, 1012, 1013, 1014)),  # in HTTP these would be a 5xx
    "client": frozenset((_CUT, 1002, 1003, 1007, 1009)),  # it could not take what we sent
}
_REFUSED = "http_"


class Session(Protocol):
    """What a span needs to know of a WebSocket session. ``started`` is a reading of the clock."""

    scope: Any
    started: float
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int
    code: str
    initiator: str

    @property
    def app(self) -> object:
        """The application that is going to answer it."""


def describe(span: Span, session: Session, route: str, error: str) -> None:
    """Say how ``session`` went; ``error`` is the type of what the app raised, or nothing."""
    if not route.startswith("_"):
        span.update_name(f"{NAME} {route}")
        span.set_attribute("http.route", route)
    status = _refusal(session)
    if status:
        span.set_attribute("http.response.status_code", status)
    else:
        span.set_attribute("loopscope.websocket.close.code", session.code)
        span.set_attribute("loopscope.websocket.close.initiator", session.initiator)
    span.set_attribute("loopscope.websocket.messages.in", session.messages_in)
    span.set_attribute("loopscope.websocket.messages.out", session.messages_out)
    span.set_attribute("loopscope.websocket.bytes.in", session.bytes_in)
    span.set_attribute("loopscope.websocket.bytes.out", session.bytes_out)
    failure = error or _failure(session, status)
    if failure:
        span.set_attribute("error.type", failure)
        span.set_status(Status(StatusCode.ERROR))


def _refusal(session: Session) -> int:
    """The status of the HTTP response that refused the session; 0 where there was none."""
    status = session.code.removeprefix(_REFUSED) if session.code.startswith(_REFUSED) else ""
    return int(status) if status.isdecimal() else 0


def _failure(session: Session, status: int) -> str:
    """What makes a session that raised nothing a failure of ours, or nothing."""
    if status:
        return str(status) if status >= 500 else ""
    ours = _OUR_FAULT.get(session.initiator, frozenset[int]())
    return session.code if session.code.isdecimal() and int(session.code) in ours else ""
