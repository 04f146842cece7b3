"""What the admin listener serves, as an ASGI application.

Bodies are made in a thread for that alone (``Figures.renderer``): not on the loop that asks, which
may be the service's own (``metrics_app``), and not on anyio's limiter, which the service may have
exhausted.
"""

from __future__ import annotations

import asyncio
import hmac
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TypeVar, cast

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from loopscope.admin.figures import Figures, Profiled, of_worker
from loopscope.admin.parameters import BadParameterError, choice, whole
from loopscope.admin.profile import profile
from loopscope.admin.stalls import by_location
from loopscope.agent import current_agent
from loopscope.core.stall import ORDERS, Order
from loopscope.settings import resolve_for_service

_GZIP = 31
"""zlib's number for gzip's format with the largest window."""

_SLICE = 64 * 1024
"""Bytes handed to a server at once."""

_PROFILES = ("folded", "speedscope")

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]


class NotRunningError(Exception):
    """There is no agent in this process to ask."""


class Console(Starlette):
    """Told by its type from what services serve: nobody should measure the measuring."""


class AdminApp:
    """Routes of the admin listener. ``token`` guards everything but ``/metrics``, where set.

    ``metrics_only`` leaves out all that a token would guard.
    """

    def __init__(
        self, figures: Callable[[], Figures | None], *, token: str = "", metrics_only: bool = False
    ) -> None:
        self._figures = figures
        self._token = token
        self._metrics_only = metrics_only

    def application(self) -> Console:
        """The ASGI application."""
        routes = [Route("/metrics", self.metrics), Route("/healthz", self.healthz)]
        if not self._metrics_only:
            routes += [
                Route("/api/snapshot", self._guarded(self.snapshot)),
                Route("/api/stalls", self._guarded(self.stalls)),
                Route("/api/stalls/profile", self._guarded(self.blocking_profile)),
                Route("/api/requests", self._guarded(self.requests)),
                Route("/api/awaits", self._guarded(self.awaits)),
                Route("/api/awaits/profile", self._guarded(self.wall_profile)),
                Route("/api/pools", self._guarded(self.pools)),
                Route("/api/profile", self._guarded(self.profile)),
                Route("/", self._guarded(self.index)),
            ]
        return Console(
            routes=routes,
            exception_handlers={
                404: _not_found,
                405: _not_allowed,
                BadParameterError: _bad,
                NotRunningError: _not_running,
            },
        )

    def _running(self) -> Figures:
        """What there is to serve. Raises ``NotRunningError``."""
        figures = self._figures()
        if figures is None:
            raise NotRunningError(
                "loopscope is not running in this process yet: it starts with the first request."
            )
        return figures

    async def metrics(self, request: Request) -> Response:
        """Prometheus text or OpenMetrics, as the ``Accept`` header asks."""
        figures = self._running()
        headers = request.headers
        squeeze = "gzip" in headers.get("accept-encoding", "")
        accept = headers.get("accept", "")
        body, content_type = await _made(figures, partial(_metrics, figures, accept, squeeze))
        response = StreamingResponse(_sliced(body), headers={"content-type": content_type})
        if squeeze:
            response.headers["content-encoding"] = "gzip"
        response.headers["vary"] = "accept, accept-encoding"
        return response

    async def snapshot(self, request: Request) -> Response:
        """All figures as JSON: see ``loopscope.admin.snapshot``."""
        figures = self._running()
        return JSONResponse(await _made(figures, figures.snapshot))

    async def stalls(self, request: Request) -> Response:
        """Stalls of the event loop: ``sort`` and ``limit`` them, or ``group`` by location."""
        figures = self._running()
        order = choice(request.query_params, "sort", ORDERS)
        limit = _limit(request)
        group = choice(request.query_params, "group", ("", "location"))
        stalls = await _made(figures, partial(figures.stalls, cast("Order", order), limit))
        return JSONResponse({"groups": by_location(stalls)} if group else {"stalls": stalls})

    async def blocking_profile(self, request: Request) -> Response:
        """Where the loop was held, as folded stacks or for speedscope."""
        figures = self._running()
        kind = choice(request.query_params, "format", _PROFILES)
        profiled = await _made(figures, figures.blocking_profile)
        return _download(profiled, kind, "event loop held", "blocking")

    async def requests(self, request: Request) -> Response:
        """Requests in flight, the oldest first: see ``loopscope.admin.requests``."""
        figures = self._running()
        limit = _limit(request)
        return JSONResponse(await _made(figures, partial(figures.requests, limit)))

    async def awaits(self, request: Request) -> Response:
        """What requests waited for: by ``route``, line and call, and what always follows on."""
        figures = self._running()
        limit = _limit(request)
        route = request.query_params.get("route")
        return JSONResponse(await _made(figures, partial(figures.awaits, route, limit)))

    async def wall_profile(self, request: Request) -> Response:
        """Where requests' time went, running and awaiting, as folded stacks or for speedscope."""
        figures = self._running()
        kind = choice(request.query_params, "format", _PROFILES)
        route = request.query_params.get("route")
        profiled = await _made(figures, partial(figures.wall_profile, route))
        return _download(profiled, kind, "where requests' time went", "requests")

    async def pools(self, request: Request) -> Response:
        """Every pool in one shape: see ``loopscope.admin.pools``."""
        figures = self._running()
        return JSONResponse(await _made(figures, figures.pools))

    async def profile(self, request: Request) -> Response:
        """What a worker is doing, for a while from now on: see ``loopscope.admin.profile``."""
        figures = self._running()
        return await profile(request, await _made(figures, figures.workers))

    async def healthz(self, request: Request) -> Response:
        """That the agent answers; says nothing of the service."""
        self._running()
        return PlainTextResponse("ok\n")

    async def index(self, request: Request) -> Response:
        """What there is to see."""
        return PlainTextResponse(
            "loopscope\n\n"
            "/metrics        Prometheus text or OpenMetrics\n"
            "/api/snapshot   the same figures as JSON\n"
            "/api/stalls     what held the event loop; ?sort=newest|longest|lost&limit=100,\n"
            "                ?group=location\n"
            "/api/stalls/profile  all of it as a profile; ?format=folded|speedscope\n"
            "/api/requests   what is in flight, and what it is waiting for; ?limit=100\n"
            "/api/awaits     which line waited for what; ?route=/items/{id}&limit=100\n"
            "/api/awaits/profile  where requests' time went; ?route=,\n"
            "                ?format=folded|speedscope\n"
            "/api/pools      how close each pool is to saturation, who waits and who holds\n"
            "/api/profile    what a worker does in the next seconds; ?seconds=5&worker=,\n"
            "                ?format=flamegraph|speedscope|folded&gil=0|1&idle=0|1\n"
            "/healthz        whether the agent answers\n"
        )

    def _guarded(self, endpoint: Endpoint) -> Endpoint:
        if not self._token:
            return endpoint
        expected = f"Bearer {self._token}".encode()

        async def guarded(request: Request) -> Response:
            given = request.headers.get("authorization", "").encode()
            if not hmac.compare_digest(given, expected):
                return PlainTextResponse(
                    "This needs the header 'Authorization: Bearer <LOOPSCOPE_TOKEN>'.\n",
                    status_code=401,
                    headers={"www-authenticate": "Bearer"},
                )
            return await endpoint(request)

        return guarded


def metrics_app() -> Starlette:
    """What the admin listener serves, to mount into a service.

    ``app.mount("/ops", metrics_app())`` makes ``/ops/metrics`` of it.
    Served by the service's own loop, rendered off it. Everything but ``/metrics`` and ``/healthz``
    asks for the token that ``LOOPSCOPE_TOKEN`` is when the application is made. Without one it is
    not there: whoever can ask the service could otherwise read stacks, and have it profiled.
    """
    token = resolve_for_service({}).token
    return AdminApp(_current, token=token, metrics_only=not token).application()


def _current() -> Figures | None:
    """What this process' agent has to say."""
    agent = current_agent()
    return None if agent is None else of_worker(agent)


async def _made(figures: Figures, work: Callable[[], T]) -> T:
    """What ``work`` makes, in the thread that figures are made in."""
    return await asyncio.get_running_loop().run_in_executor(figures.renderer, work)


def _limit(request: Request) -> int:
    return whole(request.query_params, "limit", default=100, most=1000)


def _metrics(figures: Figures, accept: str, squeeze: bool) -> tuple[list[bytes], str]:
    body, content_type = figures.metrics(accept)
    return (_squeezed(body) if squeeze else body), content_type


def _squeezed(pieces: list[bytes]) -> list[bytes]:
    compressor = zlib.compressobj(level=1, wbits=_GZIP)
    return [*map(compressor.compress, pieces), compressor.flush()]


async def _sliced(pieces: list[bytes]) -> AsyncIterator[bytes]:
    """No piece larger than a socket's buffer: a transport that holds megabytes moves them about."""
    for piece in pieces:
        for start in range(0, len(piece), _SLICE):
            yield piece[start : start + _SLICE]


async def _bad(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", status_code=400)


def _download(profiled: Profiled, kind: str, title: str, name: str) -> Response:
    """A profile as a file to keep, ``folded`` or for ``speedscope``.

    Whose share is missing is named in a header: neither format has a place for it.
    """
    if kind == "folded":
        response: Response = PlainTextResponse(profiled.profile.folded())
        file = f"{name}.folded"
    else:
        response = JSONResponse(profiled.profile.speedscope(title))
        file = f"{name}.speedscope.json"
    response.headers["content-disposition"] = f'attachment; filename="{file}"'
    if profiled.silent:
        response.headers["loopscope-silent"] = ",".join(profiled.silent)
    return response


async def _not_running(request: Request, error: Exception) -> Response:
    return PlainTextResponse(f"{error}\n", status_code=503)


async def _not_found(request: Request, error: Exception) -> Response:
    return PlainTextResponse(
        f"There is nothing at {request.url.path}; GET / lists what there is.\n", status_code=404
    )


async def _not_allowed(request: Request, error: Exception) -> Response:
    return PlainTextResponse(
        f"{request.method} is not possible here; use GET.\n",
        status_code=405,
        headers={"allow": "GET, HEAD"},
    )
