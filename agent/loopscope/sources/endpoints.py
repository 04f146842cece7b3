"""Which code serves which route, for whoever sees nothing of a worker but its stacks.

A worker that hangs with the interpreter to itself cannot say what it is at. But its stack can be
taken from outside, and the function that serves a route is on it: by its file and name, the route
is known. What is written down here is that, once, with nothing to do for a request.

Where several routes have one function, or one wrapper around theirs, it tells none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from inspect import getattr_static
from types import CodeType
from typing import Any, cast

from loopscope.core.metric import Metric
from loopscope.core.page import Page
from loopscope.core.routes import RouteResolver

ENDPOINT = Metric(
    "_endpoint", "gauge", "Code that serves a route.", ("file", "function", "line", "route")
)
MOST = 2000
"""Functions written down."""
_MOST_WRAPPERS = 16
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "on_connect", "on_receive")
"""What a class that serves a route is called by."""


class EndpointsSource:
    """Writes the endpoints that ``resolvers()`` know of into ``page``, as they come to be known."""

    def __init__(self, page: Page, resolvers: Callable[[], list[RouteResolver]]) -> None:
        self._page = page
        self._resolvers = resolvers
        self._written: set[tuple[str, ...]] = set()

    def refresh(self) -> None:
        """Write down what is new. Raises ``PageFullError``."""
        for resolver in self._resolvers():
            for endpoint, route in resolver.new_endpoints():
                self._write(endpoint, route)

    def _write(self, endpoint: object, route: str) -> None:
        for code in codes(endpoint):
            labels = (code.co_filename, code.co_qualname, str(code.co_firstlineno), route)
            if labels not in self._written and len(self._written) < MOST:
                self._written.add(labels)
                self._page.allocate(ENDPOINT, labels)


def codes(endpoint: object) -> Iterator[CodeType]:
    """The code of what serves a route: a function and what it wraps, or the methods of a class."""
    found: Any = endpoint
    for _ in range(_MOST_WRAPPERS):
        while isinstance(found, partial):
            found = found.func
        if isinstance(found, type):
            methods = (getattr(vars(found).get(name), "__code__", None) for name in _METHODS)
            yield from (code for code in methods if isinstance(code, CodeType))
            return
        function = getattr(found, "__func__", found)
        if not hasattr(function, "__code__"):
            function = getattr_static(cast("type[object]", type(found)), "__call__", None)
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code
        found = getattr(found, "__wrapped__", None)
        if found is None:
            return
