"""Which code serves which route, as far as that can be told from code alone."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial, wraps
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from loopscope.core.clock import Clock
from loopscope.core.page import Page, PageReader
from loopscope.core.routes import RouteResolver
from loopscope.sources.endpoints import ENDPOINT, EndpointsSource
from tests.harness import Server, http_scope

HERE = __file__
Endpoint = Callable[..., Awaitable[Response]]


async def item(request: Request) -> Response:
    return PlainTextResponse("")


async def other(request: Request) -> Response:
    return PlainTextResponse("")


def timed(endpoint: Endpoint) -> Endpoint:
    @wraps(endpoint)
    async def timing(*args: Any) -> Response:
        return await endpoint(*args)

    return timing


class Items(HTTPEndpoint):
    async def get(self, request: Request) -> Response:
        return PlainTextResponse("")


class Called:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("")(scope, receive, send)


@pytest.fixture
def page() -> Iterator[Page]:
    page = Page.anonymous(Clock())
    yield page
    page.close()


def written(page: Page, *applications: object) -> dict[str, set[str]]:
    """Routes and the names of the functions that serve them."""
    resolvers = [RouteResolver(application) for application in applications]
    source = EndpointsSource(page, lambda: resolvers)
    source.refresh()
    source.refresh()
    return read(page)


def read(page: Page) -> dict[str, set[str]]:
    reader = PageReader()
    reader.update(page.view)
    found: dict[str, set[str]] = {}
    rows = [each.labels for each in reader.series if each.metric == ENDPOINT]
    assert len(rows) == len(set(rows))
    for file, function, line, route in rows:
        assert int(line) > 0
        if file == HERE:
            found.setdefault(route, set()).add(function)
    return found


def test_functions_classes_and_callables_are_told(page: Page) -> None:
    """Each with its template, convertors left out."""
    app = Starlette(
        routes=[
            Route("/items/{item:int}", item),
            Route("/all", Items),
            Route("/asgi", Called()),
            Route("/partial", partial(other)),
        ]
    )
    assert written(page, app) == {
        "/items/{item}": {"item"},
        "/all": {"Items.get"},
        "/asgi": {"Called.__call__"},
        "/partial": {"other"},
    }


def test_prefixes_and_mounts_are_in_the_template(page: Page) -> None:
    """What stands at the end of a mount is told, and not the mount, which is on every stack."""
    router = APIRouter()
    router.add_api_route("/items/{item}", item, response_model=None)
    app = FastAPI()
    app.include_router(router, prefix="/v1")
    app.mount("/sub", Starlette(routes=[Route("/other", other)]))
    found = written(page, app)
    assert found == {"/v1/items/{item}": {"item"}, "/sub/other": {"other"}}


def test_what_serves_several_routes_tells_none(page: Page) -> None:
    """A wrong route would be worse than none."""
    app = Starlette(routes=[Route("/a", item), Route("/b", item)])
    assert written(page, app) == {}


def test_wrapped_functions_are_told_as_well(page: Page) -> None:
    """For the wrapper may be that of all routes."""
    app = Starlette(routes=[Route("/a", timed(item)), Route("/b", timed(other))])
    wrapper = "timed.<locals>.timing"
    assert written(page, app) == {"/a": {"item", wrapper}, "/b": {"other", wrapper}}


def test_a_mount_that_shows_no_routes_is_left_out(page: Page, tmp_path: Any) -> None:
    """Static files are served by no code of the user's."""
    app = Starlette(routes=[Mount("/static", StaticFiles(directory=tmp_path)), Route("/a", item)])
    assert written(page, app) == {"/a": {"item"}}


def test_routes_that_come_later_are_told_later(page: Page) -> None:
    """And those that were there are not told again."""
    app = Starlette(routes=[Route("/a", item)])
    resolver = RouteResolver(app)
    source = EndpointsSource(page, lambda: [resolver])
    source.refresh()
    app.router.routes.append(Route("/b", other))
    source.refresh()
    assert read(page) == {"/a": {"item"}, "/b": {"other"}}


@pytest.mark.anyio
async def test_routes_that_only_routing_finds_are_told_after_it(page: Page) -> None:
    """A middleware may keep its application under any name; the scope has it then."""
    inner = Starlette(routes=[Route("/a", item)])

    class Odd:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await inner(scope, receive, send)

    resolver = RouteResolver(Odd())
    source = EndpointsSource(page, lambda: [resolver])
    source.refresh()
    assert read(page) == {}
    scope = http_scope("/a")
    server = Server()
    await Odd()(scope, server.receive, server.send)
    assert resolver.resolve(scope) == "/a"
    source.refresh()
    assert read(page) == {"/a": {"item"}}


def test_routes_are_walked_again_only_where_there_are_others(page: Page) -> None:
    """It is asked every second, and routes hardly ever change."""
    app = Starlette(routes=[Route("/a", item)])
    resolver = RouteResolver(app)
    assert resolver.new_endpoints() == [(item, "/a")]
    assert resolver.new_endpoints() == []
    app.router.routes.append(Route("/b", other))
    assert resolver.new_endpoints() == [(item, "/a"), (other, "/b")]
    assert resolver.new_endpoints() == []


def test_applications_without_routes_are_no_trouble(page: Page) -> None:
    """Any ASGI application may be below the middleware."""
    assert written(page, Called(), object()) == {}
