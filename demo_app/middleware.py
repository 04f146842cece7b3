"""A middleware that can be taken out while the shop runs."""

from __future__ import annotations

from collections.abc import Awaitable

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from demo_app import faults, switches


class Audit:
    """``faults.audit_every_request`` around the shop where that is switched on, else nothing."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._audited = BaseHTTPMiddleware(app, dispatch=faults.audit_every_request)

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # No coroutine of its own, which would be in every chain of awaits.
        app = self._audited if switches.is_on(faults.audit_every_request) else self.app
        return app(scope, receive, send)
