"""Routes are templates: real Starlette and FastAPI applications, asked through a recording wrapper.

The wrapper stands where the middleware will stand: it passes its scope down and asks the resolver
once the application is done.
"""

from __future__ import annotations

import asyncio
import gc
import re
import tempfile
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator, MutableMapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Host, Match, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket

from loopscope.core.routes import UNKNOWN, UNMATCHED, RouteResolver

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]


class Recorder:
    """Calls an application as a server would, and returns what the resolver says of each call."""

    def __init__(self, app: Any, **options: Any) -> None:
        self.app: App = app
        self.errors: list[BaseException] = []
        self.resolver = RouteResolver(app, on_error=self.errors.append, **options)
        self.status = 0

    def get(self, path: str, *, method: str = "GET", host: str = "test", root: str = "") -> str:
        """Resolve one HTTP request; the label must not depend on memory, so ask for it twice."""
        first, second = (self.once("http", path, method, host, root) for _ in range(2))
        assert first == second
        return first

    def connect(self, path: str) -> str:
        """Resolve one WebSocket connection."""
        return self.once("websocket", path, "", "test", "")

    def once(self, kind: str, path: str, method: str, host: str, root: str) -> str:
        """Call the application once and resolve; a fault in the resolver fails the test."""
        scope = make_scope(kind, path, method, host, root)
        asyncio.run(self.app(scope, make_receive(kind), self.send))
        label = self.resolver.resolve(scope, self.status)
        assert self.errors == []
        return label

    async def send(self, message: Message) -> None:
        """Keep the status of a response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]


def make_scope(kind: str, path: str, method: str, host: str, root: str) -> dict[str, Any]:
    """Return a scope as uvicorn makes it."""
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": root,
        "headers": [(b"host", host.encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    rest: dict[str, Any] = {"method": method} if kind == "http" else {"subprotocols": []}
    return scope | rest


def make_receive(kind: str) -> Receive:
    """Return the client's side: one empty body, or a connection closed after the handshake."""
    messages: Iterator[Message] = iter(
        [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]
        if kind == "http"
        else [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000}]
    )

    async def receive() -> Message:
        return next(messages)

    return receive


async def ok(request: Request) -> Response:
    """Answer 200."""
    return PlainTextResponse("ok")


async def other(request: Request) -> Response:
    """Answer 200 too, from another endpoint."""
    return PlainTextResponse("other")


async def accept(websocket: WebSocket) -> None:
    """Accept a connection and close it."""
    await websocket.accept()
    await websocket.close()


async def item(item_id: int) -> dict[str, int]:
    """Answer as FastAPI endpoints do."""
    return {"id": item_id}


def item_router(path: str = "/inc/{item_id}") -> APIRouter:
    """Return a router with one parametrised route."""
    router = APIRouter()
    router.add_api_route(path, item, methods=["GET"])
    return router


def item_app(path: str = "/items/{item_id}", root_path: str = "") -> FastAPI:
    """Return a FastAPI application with one parametrised route."""
    app = FastAPI()
    # As a constructor argument it is deprecated in newer releases, yet still honoured.
    app.root_path = root_path
    app.add_api_route(path, item, methods=["GET"])
    return app


def ok_app(path: str = "/users/{user_id:int}") -> Starlette:
    """Return a Starlette application with one parametrised route."""
    return Starlette(routes=[Route(path, ok)])


def opaque(app: Any) -> App:
    """Wrap `app` in a middleware function, through which nobody can see its routes."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope, receive, send)

    return middleware


def copying(app: Any) -> App:
    """Wrap `app` in a middleware function that passes down a copy of the scope."""

    async def middleware(scope: Scope, receive: Receive, send: Send) -> None:
        await app(dict(scope), receive, send)

    return middleware


class Copying:
    """A middleware with ``.app`` that passes down a copy of the scope."""

    def __init__(self, app: Any) -> None:
        self.app: App = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the application with a copy."""
        await self.app(dict(scope), receive, send)


class Refusing(Copying):
    """A middleware that answers 401 before any routing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse."""
        await PlainTextResponse("no", status_code=401)(scope, receive, send)


def counted(monkeypatch: pytest.MonkeyPatch, owner: type[Any]) -> list[str]:
    """Return a list that grows with each call of a route's ``matches``."""
    calls: list[str] = []
    matches = owner.matches

    def counting(self: Any, scope: Scope) -> Any:
        calls.append(self.path)
        return matches(self, scope)

    monkeypatch.setattr(owner, "matches", counting)
    return calls


# Plain routes


def test_starlette_route() -> None:
    """A Starlette route is labelled with its template, not with the path."""
    assert Recorder(ok_app()).get("/users/42") == "/users/{user_id}"


def test_fastapi_route() -> None:
    """A FastAPI route is labelled with its template, not with the path."""
    assert Recorder(item_app()).get("/items/42") == "/items/{item_id}"


def test_fastapi_plain_route() -> None:
    """FastAPI leaves no route for /openapi.json and other plain routes; the endpoint names them."""
    app = item_app()
    app.add_route("/plain/{name}", ok)
    recorder = Recorder(app)
    assert recorder.get("/openapi.json") == "/openapi.json"
    assert recorder.get("/plain/x") == "/plain/{name}"


def test_convertors_are_dropped() -> None:
    """A path convertor is no part of the label, so Starlette and FastAPI agree."""
    app = FastAPI()

    @app.get("/files/{path:path}")
    async def file(path: str) -> str:
        return path

    assert Recorder(app).get("/files/a/b") == "/files/{path}"
    assert Recorder(ok_app("/files/{path:path}")).get("/files/a/b") == "/files/{path}"


def test_websocket_routes() -> None:
    """A WebSocket is labelled like a request, mounted and included too."""
    router = APIRouter()
    router.add_api_websocket_route("/ws/{room}", accept)
    app = FastAPI()
    app.include_router(router, prefix="/a")
    app.include_router(router, prefix="/b")
    app.mount("/s", Starlette(routes=[WebSocketRoute("/ws/{room}", accept)]))
    recorder = Recorder(app)
    assert recorder.connect("/a/ws/1") == "/a/ws/{room}"
    assert recorder.connect("/b/ws/1") == "/b/ws/{room}"
    assert recorder.connect("/s/ws/1") == "/s/ws/{room}"
    assert recorder.connect("/nowhere") == UNMATCHED


def test_one_endpoint_at_two_paths() -> None:
    """An endpoint used by two routes is told apart by which of the two the path fits."""
    app = Starlette(routes=[Route("/a/{x}", ok), Route("/b/{y}", ok)])
    recorder = Recorder(app)
    assert recorder.get("/a/1") == "/a/{x}"
    assert recorder.get("/b/1") == "/b/{y}"


# Included routers


def test_router_included_twice() -> None:
    """A router included under two prefixes keeps its two prefixes apart."""
    router = item_router()
    app = FastAPI()
    app.include_router(router, prefix="/api")
    app.include_router(router, prefix="/other")
    recorder = Recorder(app)
    assert recorder.get("/api/inc/1") == "/api/inc/{item_id}"
    assert recorder.get("/other/inc/1") == "/other/inc/{item_id}"


def test_nested_routers() -> None:
    """Prefixes of routers in routers add up, parameters in prefixes included."""
    outer = APIRouter(prefix="/v1")
    outer.include_router(item_router(), prefix="/{team}")
    app = FastAPI()
    app.include_router(outer, prefix="/api")
    assert Recorder(app).get("/api/v1/red/inc/1") == "/api/v1/{team}/inc/{item_id}"


def test_plain_route_in_included_router() -> None:
    """A plain Starlette route in an included router carries the prefix."""
    router = APIRouter()
    router.add_route("/plain/{name}", ok)
    app = FastAPI()
    app.include_router(router, prefix="/a")
    app.include_router(router, prefix="/b")
    recorder = Recorder(app)
    assert recorder.get("/a/plain/1") == "/a/plain/{name}"
    assert recorder.get("/b/plain/1") == "/b/plain/{name}"


@pytest.mark.skipif(
    tuple(map(int, version("fastapi").split(".")[:2])) < (0, 137),
    reason="older FastAPI drops a router's mounts",
)
def test_mount_in_included_router() -> None:
    """A stale context of a mount does not hide what matched inside the mount."""
    router = APIRouter()
    router.mount("/m", item_app())
    router.mount("/s", ok_app())
    app = FastAPI()
    app.include_router(router, prefix="/api")
    recorder = Recorder(app)
    assert recorder.get("/api/m/items/1") == "/api/m/items/{item_id}"
    assert recorder.get("/api/m/openapi.json") == "/api/m/openapi.json"
    assert recorder.get("/api/s/users/1") == "/api/s/users/{user_id}"
    assert recorder.get("/api/m/nowhere") == UNMATCHED


def test_routes_added_while_serving() -> None:
    """Routes and routers added after the first requests are found."""
    app = item_app()
    recorder = Recorder(app)
    assert recorder.get("/items/1") == "/items/{item_id}"
    app.add_route("/late/{x}", ok)
    app.include_router(item_router(), prefix="/late")
    app.mount("/sub", ok_app())
    assert recorder.get("/late/1") == "/late/{x}"
    assert recorder.get("/late/inc/1") == "/late/inc/{item_id}"
    assert recorder.get("/sub/users/1") == "/sub/users/{user_id}"
    assert recorder.get("/items/1") == "/items/{item_id}"


# Mounts, hosts and sub-applications


def test_static_mount() -> None:
    """A mount of plain routes puts its path before theirs."""
    app = Starlette(routes=[Mount("/m", routes=[Route("/users/{user_id}", ok)])])
    assert Recorder(app).get("/m/users/1") == "/m/users/{user_id}"


def test_parametrised_mount() -> None:
    """A parametrised mount shows its parameter, not the tenant that is in the root path."""
    app = FastAPI()
    app.mount("/t/{tenant}", item_app())
    recorder = Recorder(app)
    for tenant in ("acme", "umbrella", "acme"):
        assert recorder.get(f"/t/{tenant}/items/1") == "/t/{tenant}/items/{item_id}"


def test_nested_mounts() -> None:
    """Mounts in mounts, parametrised or not, add up."""
    inner = Mount("/{team:str}", routes=[Route("/users/{user_id:int}", ok)])
    app = Starlette(routes=[Mount("/t/{tenant}", routes=[Mount("/teams", routes=[inner])])])
    label = Recorder(app).get("/t/acme/teams/red/users/1")
    assert label == "/t/{tenant}/teams/{team}/users/{user_id}"


def test_mount_without_a_path() -> None:
    """A mount at the root adds nothing to the routes in it."""
    app = Starlette(routes=[Mount("", routes=[Route("/", ok), Route("/users/{user_id}", ok)])])
    recorder = Recorder(app)
    assert recorder.get("/") == "/"
    assert recorder.get("/users/1") == "/users/{user_id}"


def test_application_mounted_twice() -> None:
    """A sub-application mounted at two paths is told apart by the path, parameters or not."""
    sub = item_app()
    app = FastAPI()
    app.mount("/v1", sub)
    app.mount("/v2", sub)
    app.mount("/t/{tenant}", sub)
    recorder = Recorder(app)
    for _ in range(2):
        assert recorder.get("/v1/items/1") == "/v1/items/{item_id}"
        assert recorder.get("/v2/items/1") == "/v2/items/{item_id}"
        assert recorder.get("/t/v1/items/1") == "/t/{tenant}/items/{item_id}"
        assert recorder.get("/v1/v2/items/1", root="/v1") == "/v2/items/{item_id}"


@pytest.mark.parametrize("outer", [Starlette, FastAPI])
@pytest.mark.parametrize("make_inner", [item_app, lambda: ok_app("/items/{item_id}")])
def test_applications_in_applications(
    outer: Callable[[], Starlette], make_inner: Callable[[], Starlette]
) -> None:
    """FastAPI and Starlette applications mounted in one another give full templates."""
    app = outer()
    app.mount("/sub", make_inner())
    assert Recorder(app).get("/sub/items/1") == "/sub/items/{item_id}"


def test_included_router_in_sub_application() -> None:
    """Mount and include prefixes combine."""
    sub = FastAPI()
    sub.include_router(item_router(), prefix="/api")
    app = Starlette(routes=[Mount("/t/{tenant}", app=sub)])
    assert Recorder(app).get("/t/acme/api/inc/1") == "/t/{tenant}/api/inc/{item_id}"


def test_opaque_wrapper_around_a_sub_application() -> None:
    """Routes behind a wrapper that shows none get the mount's template before their own."""
    for sub in (item_app(), ok_app("/items/{item_id}")):
        app = Starlette(routes=[Mount("/t/{tenant}", app=opaque(sub))])
        assert Recorder(app).get("/t/acme/items/1") == "/t/{tenant}/items/{item_id}"
        assert Recorder(opaque(app)).get("/t/acme/items/1") == "/t/{tenant}/items/{item_id}"


def test_static_files() -> None:
    """A mount of files is one label, whether or not the file exists."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "a.txt").write_text("a")
        for app in (Starlette(), FastAPI()):
            app.mount("/static", StaticFiles(directory=directory))
            recorder = Recorder(app)
            assert recorder.get("/static/a.txt") == "/static/{path}"
            assert recorder.get("/static/b.txt") == "/static/{path}"


@pytest.mark.skipif(not hasattr(FastAPI, "frontend"), reason="older FastAPI has no frontends")
def test_fastapi_frontends() -> None:
    """A frontend is one label for all of its files, the most specific one at its path."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "index.html").write_text("hi")
        router = APIRouter()
        router.frontend("/ui", directory=directory)
        app = item_app()
        app.include_router(router, prefix="/api")
        app.frontend("/", directory=directory)
        recorder = Recorder(app)
        assert recorder.get("/api/ui/index.html") == "/api/ui/{path}"
        assert recorder.get("/index.html") == "/{path}"
        assert recorder.get("/items/1") == "/items/{item_id}"


def test_host_routes() -> None:
    """The host decides which route matches, and is no part of the label."""
    app = Starlette(
        routes=[
            Host("api.{domain}", app=Router(routes=[Route("/users/{user_id}", ok)])),
            Host("{any_host}", app=item_app("/users/{item_id}")),
        ]
    )
    recorder = Recorder(app)
    assert recorder.get("/users/1", host="api.example.org") == "/users/{user_id}"
    assert recorder.get("/users/1", host="example.org") == "/users/{item_id}"
    assert recorder.get("/nowhere", host="api.example.org") == UNMATCHED


# What did not match


@pytest.mark.parametrize("make_app", [ok_app, item_app])
def test_unmatched(make_app: Callable[[], Starlette]) -> None:
    """A path without a route collapses into one label."""
    recorder = Recorder(make_app())
    assert recorder.get("/nowhere/1") == UNMATCHED
    assert recorder.get("/wp-login.php") == UNMATCHED


def test_handler_that_answers_404() -> None:
    """A 404 from an endpoint belongs to the endpoint's route."""

    async def missing(request: Request) -> Response:
        raise HTTPException(404)

    recorder = Recorder(Starlette(routes=[Route("/users/{user_id}", missing)]))
    assert recorder.get("/users/1") == "/users/{user_id}"


@pytest.mark.parametrize("outer", [Starlette, FastAPI])
@pytest.mark.parametrize("make_inner", [ok_app, item_app])
def test_unmatched_in_sub_application(
    outer: Callable[[], Starlette], make_inner: Callable[[], Starlette]
) -> None:
    """A path that enters a sub-application and matches nothing there is unmatched."""
    app = outer()
    app.mount("/t/{tenant}", make_inner())
    recorder = Recorder(app)
    assert recorder.get("/t/acme/nowhere") == UNMATCHED
    assert recorder.get("/t/acme/users/1") != recorder.get("/t/acme/items/1")
    assert recorder.get("/t/acme/nowhere") == UNMATCHED


def test_method_not_allowed() -> None:
    """A 405 belongs to the route whose path matched, with all its prefixes."""
    app = item_app()
    app.include_router(item_router(), prefix="/api")
    app.mount("/t/{tenant}", ok_app())
    recorder = Recorder(app)
    assert recorder.get("/items/1", method="DELETE") == "/items/{item_id}"
    assert recorder.get("/api/inc/1", method="DELETE") == "/api/inc/{item_id}"
    assert recorder.get("/t/acme/users/1", method="DELETE") == "/t/{tenant}/users/{user_id}"
    assert recorder.status == 405


@pytest.mark.parametrize("outer", [Starlette, FastAPI])
def test_slash_redirect(outer: Callable[[], Starlette]) -> None:
    """A slash redirect is unmatched: no endpoint ran, the redirected request names the route."""
    app = outer()
    app.mount("/sub", ok_app("/users/{user_id}/"))
    app.router.routes.append(Route("/here/{x}/", ok))
    recorder = Recorder(app)
    assert recorder.get("/here/1") == UNMATCHED
    assert recorder.get("/sub/users/1") == UNMATCHED
    assert recorder.status == 307
    assert recorder.get("/here/1/") == "/here/{x}/"
    assert recorder.get("/sub/users/1/") == "/sub/users/{user_id}/"


# Proxies


@pytest.mark.parametrize("path", ["/api/items/1", "/items/1"])
@pytest.mark.parametrize("root", ["/api", ""])
@pytest.mark.parametrize("setting", ["/api", ""])
def test_root_path_behind_a_proxy(path: str, root: str, setting: str) -> None:
    """A proxy's root path, from the server or from FastAPI, is no part of the label."""
    recorder = Recorder(item_app(root_path=setting))
    served = path == "/items/1" or root or setting
    assert recorder.get(path, root=root) == ("/items/{item_id}" if served else UNMATCHED)


def test_mounts_behind_a_proxy() -> None:
    """Behind a proxy a mount is still told from the proxy's root path."""
    sub = ok_app()
    app = FastAPI()
    app.root_path = "/api"
    app.mount("/api", sub)
    app.mount("/t/{tenant}", sub)
    recorder = Recorder(app)
    assert recorder.get("/api/t/acme/users/1") == "/t/{tenant}/users/{user_id}"
    assert recorder.get("/api/api/users/1") == "/api/users/{user_id}"
    assert recorder.get("/api/t/acme/users/1", root="/api") == "/t/{tenant}/users/{user_id}"


def test_middleware_in_a_sub_application() -> None:
    """Asked from inside a mounted sub-application, the label is the full template."""
    recorder = Recorder(ok_app())
    label: list[str] = []

    async def inside(scope: Scope, receive: Receive, send: Send) -> None:
        await recorder.app(scope, receive, send)
        label.append(recorder.resolver.resolve(scope))

    app = Starlette(routes=[Mount("/t/{tenant}", app=inside)])
    Recorder(app).get("/t/acme/users/1")
    assert label == ["/t/{tenant}/users/{user_id}"] * 2


# Applications that show nothing


def test_raw_application() -> None:
    """An application without routes is unknown, whatever its path."""

    async def raw(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("raw")(scope, receive, send)

    assert Recorder(raw).get("/secret/42") == UNKNOWN
    assert Recorder(Copying(raw)).get("/secret/42") == UNKNOWN


def test_routes_that_are_not_understood() -> None:
    """A foreign framework's table of routes is not mistaken for one of ours."""

    class Foreign:
        routes = (object(), "/users/42")

        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            await PlainTextResponse("foreign")(scope, receive, send)

    assert Recorder(Foreign()).get("/users/42") == UNKNOWN


@pytest.mark.parametrize("route", ["/users/42", object(), {"path": "/users/42"}, 42])
def test_foreign_route_values(route: object) -> None:
    """What another framework keeps under ``scope["route"]`` never becomes a label by itself."""
    scope = make_scope("http", "/users/42", "GET", "test", "") | {"route": route}
    assert RouteResolver(None).resolve(scope) == UNKNOWN


def test_chain_of_middlewares_that_never_ends() -> None:
    """A middleware that wraps itself does not keep the resolver busy for ever."""
    loop = Copying(None)
    loop.app = loop
    assert RouteResolver(loop).resolve(make_scope("http", "/", "GET", "test", "")) == UNKNOWN


def test_router_mounted_in_itself() -> None:
    """A router that contains itself is walked to a bounded depth, and its routes are found."""
    app = Starlette(routes=[Route("/users/{user_id}", ok)])
    app.mount("/again", app)
    recorder = Recorder(app)
    assert recorder.get("/users/1") == "/users/{user_id}"
    assert recorder.get("/again/again/users/1") == "/again/again/users/{user_id}"


# Scopes without traces


def test_middleware_that_copies_the_scope() -> None:
    """When the scope went down as a copy, the routes are asked again, with the same answers."""
    app = item_app()
    app.include_router(item_router(), prefix="/api")
    app.mount("/t/{tenant}", ok_app())
    app.add_middleware(Copying)
    recorder = Recorder(Copying(app))
    assert recorder.get("/items/1") == "/items/{item_id}"
    assert recorder.get("/items/1", method="DELETE") == "/items/{item_id}"
    assert recorder.get("/api/inc/1") == "/api/inc/{item_id}"
    assert recorder.get("/t/acme/users/1") == "/t/{tenant}/users/{user_id}"
    assert recorder.get("/t/acme/nowhere") == UNMATCHED
    assert recorder.get("/nowhere") == UNMATCHED


def test_sub_application_that_copies_the_scope() -> None:
    """A copy made inside a mount hides the route there, and the routes inside are asked again."""
    sub = ok_app()
    sub.add_middleware(Copying)
    app = Starlette(routes=[Mount("/t/{tenant}", app=sub)])
    recorder = Recorder(app)
    assert recorder.get("/t/acme/users/1") == "/t/{tenant}/users/{user_id}"
    assert recorder.get("/t/acme/nowhere") == UNMATCHED


def test_answer_before_routing() -> None:
    """A request that a middleware refuses belongs to the route it asked for."""
    app = item_app()
    app.add_middleware(Refusing)
    recorder = Recorder(Copying(app))
    assert recorder.get("/items/1") == "/items/{item_id}"
    assert recorder.get("/nowhere") == UNMATCHED


def test_copies_with_hosts() -> None:
    """Where hosts decide, an answer for one host is not remembered for another."""
    app = Starlette(
        routes=[
            Host("a.test", app=Router(routes=[Route("/{a}", ok)])),
            Host("b.test", app=Router(routes=[Route("/{b}", ok)])),
        ]
    )
    recorder = Recorder(Copying(app))
    assert recorder.get("/x", host="a.test") == "/{a}"
    assert recorder.get("/x", host="b.test") == "/{b}"


# Cost and bounds


@pytest.mark.parametrize(
    "path", ["/users/7/x", "/items/7", "/nowhere", "/sub/users/7/x", "/sub/no"]
)
def test_routes_are_not_asked_again(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    """Resolving a routed request asks no route whether it matches, found or not."""
    app = item_app()
    app.router.routes.append(Route("/users/{user_id}/x", ok))
    app.mount("/sub", ok_app("/users/{user_id}/x"))
    recorder = Recorder(app)
    recorder.get("/sub/users/7/x")
    scope = make_scope("http", path, "GET", "test", "")
    asyncio.run(app(scope, make_receive("http"), recorder.send))
    calls = counted(monkeypatch, Route)
    recorder.resolver.resolve(scope, recorder.status)
    assert calls == []


@pytest.mark.parametrize("app", [None, ok_app()])
def test_routes_made_for_each_request(app: Starlette | None) -> None:
    """Route objects that live for one request get right answers, and are not kept for long."""
    resolver = RouteResolver(app, memo_size=8)
    seen: list[weakref.ref[Route]] = []
    for number in range(200):
        route = Route(f"/shape{number}/{{x}}", ok)
        scope = make_scope("http", "/", "GET", "test", "") | {"route": route, "endpoint": ok}
        assert resolver.resolve(scope) == f"/shape{number}/{{x}}"
        seen.append(weakref.ref(route))
    del route, scope
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 8


def test_routes_added_in_each_request() -> None:
    """An application that grows with each request is labelled without being walked each time."""

    class Counting:
        walks = 0

        def effective_route_contexts(self) -> tuple[()]:
            self.walks += 1
            return ()

        def matches(self, scope: Scope) -> tuple[Match, Scope]:
            return Match.NONE, {}

    app = item_app()
    counting = Counting()
    app.router.routes.insert(0, counting)  # type: ignore[arg-type]
    recorder = Recorder(app)
    for number in range(100):
        app.add_api_route(f"/late{number}/{{item_id}}", item)
        assert recorder.get(f"/late{number}/1") == f"/late{number}/{{item_id}}"
    assert counting.walks < 50


def memos(resolver: RouteResolver) -> list[dict[Any, Any]]:
    """Return every memo of the resolver."""
    held = [getattr(resolver, name) for name in RouteResolver.__slots__]
    return [memo for memo in held if isinstance(memo, dict)]


def test_memo_is_bounded() -> None:
    """However many routes, tenants and paths are asked for, no memo passes its size."""
    app = Starlette(routes=[Route(f"/r{n}/{{x}}", other) for n in range(50)])
    app.mount("/t/{tenant}", ok_app())
    for recorder in (Recorder(app, memo_size=8), Recorder(Copying(app), memo_size=8)):
        for n in range(50):
            assert recorder.get(f"/r{n}/1") == f"/r{n}/{{x}}"
            assert recorder.get(f"/t/tenant{n}/users/1") == "/t/{tenant}/users/{user_id}"
            assert recorder.get(f"/nowhere{n}") == UNMATCHED
        assert max(len(memo) for memo in memos(recorder.resolver)) <= 8


def test_applications_do_not_mix() -> None:
    """Behind one dispatcher, a sub-application shared by two applications keeps two labels."""
    sub = ok_app()
    first, second = Starlette(routes=[Mount("/a", sub)]), Starlette(routes=[Mount("/b", sub)])

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        await (first if scope["path"].startswith("/a") else second)(scope, receive, send)

    recorder = Recorder(dispatch)
    for _ in range(2):
        assert recorder.get("/a/users/1") == "/a/users/{user_id}"
        assert recorder.get("/b/users/1") == "/b/users/{user_id}"


def test_no_label_from_a_request() -> None:
    """Every label is a template of the application, or one of the two special ones."""
    app = item_app()
    app.mount("/t/{tenant}", ok_app())
    allowed = re.compile(r"/items/\{item_id\}|/t/\{tenant\}/users/\{user_id\}|_UNMATCHED")
    for served in (app, copying(app), Copying(app)):
        recorder = Recorder(served)
        for path in ("/items/1", "/items/x", "/t/evil/users/1", "/t/evil/1", "//", "/%00", ""):
            label = recorder.get(path, host="evil.example", root="/evil")
            assert allowed.fullmatch(label) or (served is not app and label == UNKNOWN)


# Failure


class Failing:
    """A route whose attributes fail in an unusual way."""

    def __getattr__(self, name: str) -> Any:
        """Fail."""
        raise RuntimeError(name)


def test_failure_is_reported() -> None:
    """Whatever goes wrong is handed to on_error, and the label is the unknown one."""
    errors: list[BaseException] = []
    resolver = RouteResolver(None, on_error=errors.append)
    scope = make_scope("http", "/", "GET", "test", "") | {"route": Failing()}
    assert resolver.resolve(scope) == UNKNOWN
    assert [type(error) for error in errors] == [RuntimeError]


def test_failure_to_report_is_contained() -> None:
    """An on_error that fails itself does not reach the request either, nor does its absence."""

    def fail(error: BaseException) -> None:
        raise RuntimeError from error

    scope = make_scope("http", "/", "GET", "test", "") | {"route": Failing()}
    assert RouteResolver(None, on_error=fail).resolve(scope) == UNKNOWN
    assert RouteResolver(None).resolve(scope) == UNKNOWN


def test_one_failing_route_spares_the_others() -> None:
    """A route that cannot be looked at leaves the other routes their labels."""
    app = item_app()
    errors: list[BaseException] = []
    resolver = RouteResolver(app, on_error=errors.append)
    scope = make_scope("http", "/items/1", "GET", "test", "")
    asyncio.run(app(scope, make_receive("http"), Recorder(app).send))
    app.router.routes.insert(0, Failing())  # type: ignore[arg-type]
    assert resolver.resolve(scope) == "/items/{item_id}"
    assert len(errors) == 1
