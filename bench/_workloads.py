"""What is asked of the measured applications: one small app and its requests per workload."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass

from fastapi import FastAPI
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

CHUNKS = 1000
STEPS = 100
IDS = 1000


@dataclass(frozen=True)
class Workload:
    """One application and the requests made to it.

    `units` is how many of the thing named by `unit` one request does; results are per unit.
    `weight` is how many plain requests one of these takes about as long as, so that a slice of
    any workload lasts about as long as a slice of any other.
    """

    key: str
    title: str
    app: Callable[[], Starlette]
    paths: tuple[str, ...]
    method: str = "GET"
    body: bytes = b""
    units: int = 1
    unit: str = "request"
    weight: int = 1


def workloads(routes: Sequence[int]) -> list[Workload]:
    """Every workload; the plain GET once per number of routes in `routes`."""
    return [
        *(load for count in routes for load in _routed(count)),
        Workload("post", "POST with a JSON body", _json_app, ("/orders",), "POST", _ORDER),
        Workload("starlette", "GET, plain Starlette route", _plain_app, _ids("/items/{}")),
        Workload(
            "stream",
            f"streamed response of {CHUNKS} chunks, per chunk",
            _stream_app,
            ("/stream",),
            units=CHUNKS,
            unit="chunk",
            weight=100,
        ),
        Workload(
            "steps",
            f"{STEPS} awaits that give the loop away, per step",
            _steps_app,
            ("/steps",),
            units=STEPS,
            unit="step",
            weight=5,
        ),
        Workload("wait", "a wait of 2 ms (see the CPU time)", _wait_app, ("/wait",), weight=40),
        Workload("gather", "a gather of three tasks", _gather_app, ("/gather",), weight=3),
        Workload("sync", "a sync endpoint, in a thread", _sync_app, ("/sync",), weight=4),
        Workload("base", "under BaseHTTPMiddleware", _base_app, ("/plain",), weight=4),
    ]


def _routed(count: int) -> list[Workload]:
    def build() -> Starlette:
        return _routes_app(count)

    plural = "s" if count > 1 else ""
    last = Workload(
        f"get-{count}",
        f"GET, {count} route{plural}, to the last, a thousand paths in turn",
        build,
        _ids(f"/things{count - 1}/{{}}"),
    )
    if count == 1:
        return [last]
    paths = tuple(f"/things{number % count}/{number}" for number in range(max(IDS, count)))
    every = Workload(f"get-{count}-all", f"GET, {count} routes, to each in turn", build, paths)
    return [last, every]


def _ids(template: str) -> tuple[str, ...]:
    return tuple(template.format(number) for number in range(IDS))


def _routes_app(count: int) -> Starlette:
    app = FastAPI(openapi_url=None)
    for number in range(count):
        app.add_api_route(f"/things{number}/{{thing_id}}", _thing_endpoint(), response_model=None)
    return app


def _thing_endpoint() -> Callable[[Request], Awaitable[JSONResponse]]:
    """As light as FastAPI's endpoints get, so that what a contender adds stands out."""

    async def thing(request: Request) -> JSONResponse:
        return JSONResponse({"thing_id": request.path_params["thing_id"]})

    return thing


class _Line(BaseModel):
    product: str
    quantity: int
    price: float


class _Order(BaseModel):
    customer: str
    lines: list[_Line]


_ORDER = (
    _Order(
        customer="c-1042",
        lines=[_Line(product=f"p-{number}", quantity=number, price=9.5) for number in range(5)],
    )
    .model_dump_json()
    .encode()
)


def _json_app() -> Starlette:
    app = FastAPI(openapi_url=None)

    async def order(order: _Order) -> dict[str, float]:
        return {"total": sum(line.quantity * line.price for line in order.lines)}

    app.add_api_route("/orders", order, methods=["POST"])
    return app


def _plain_app() -> Starlette:
    async def item(request: Request) -> JSONResponse:
        return JSONResponse({"item_id": int(request.path_params["item_id"])})

    return Starlette(routes=[Route("/items/{item_id}", item)])


def _stream_app() -> Starlette:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield b"a line of a report, sixty-four bytes with the newline at the end"

    async def stream() -> StreamingResponse:
        return StreamingResponse(chunks(), media_type="text/plain")

    app = FastAPI(openapi_url=None)
    app.add_api_route("/stream", stream, response_model=None)
    return app


def _steps_app() -> Starlette:
    async def steps() -> dict[str, int]:
        for _ in range(STEPS):
            await asyncio.sleep(0)
        return {"steps": STEPS}

    app = FastAPI(openapi_url=None)
    app.add_api_route("/steps", steps)
    return app


def _wait_app() -> Starlette:
    async def wait(request: Request) -> JSONResponse:
        await asyncio.sleep(0.002)
        return JSONResponse({})

    return Starlette(routes=[Route("/wait", wait)])


def _gather_app() -> Starlette:
    async def part() -> None:
        await asyncio.sleep(0)

    async def gather(request: Request) -> JSONResponse:
        await asyncio.gather(part(), part(), part())
        return JSONResponse({})

    return Starlette(routes=[Route("/gather", gather)])


def _sync_app() -> Starlette:
    def sync(request: Request) -> JSONResponse:
        return JSONResponse({})

    return Starlette(routes=[Route("/sync", sync)])


def _base_app() -> Starlette:
    async def plain(request: Request) -> JSONResponse:
        return JSONResponse({})

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
            return await call_next(request)

    return Starlette(routes=[Route("/plain", plain)], middleware=[Middleware(Passing)])
