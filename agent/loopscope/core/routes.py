"""Routes: from a scope that has been routed to the route template that labels its series.

A label has to be a template (``/users/{id}``), never a path (``/users/42``), and finding it must
not cost more when an application has more routes. Asking every route again whether it matches,
as exporters commonly do, costs as much as the routing itself. But routing leaves traces in the
scope, and those name the matched *object*:

``scope["fastapi"]["effective_route_context"]``
    FastAPI >= 0.137: the route as seen through the ``include_router`` calls that lead to it.
    Only this object knows the prefixes; the route itself may be included many times.
``scope["route"]``
    FastAPI's own routes, and every route and mount of recent Starlette releases.
``scope["endpoint"]``
    Whatever matched last: all that older Starlette leaves, and all that FastAPI leaves for plain
    routes such as ``/docs``. Also the judge of freshness: a mount's ``route`` or context stays
    in the scope after a sub-application has matched something else.

So the tree of routes is walked once, into an index from object to the places it stands at. An
object that stands at one place only has one template whatever the request's ``root_path`` says,
and that is the whole trick: neither a proxy's root path, nor the values in a parametrised mount
are ever parsed. An object that stands at several places (a sub-application mounted twice) is
told apart by matching those few places, not all routes. Every answer is memoised by identity.

Choices worth knowing:

- Convertors are dropped (``/files/{path}``), as FastAPI does, so that frameworks agree.
- A mount that shows no routes (``StaticFiles``) is ``/static/{path}``.
- A slash redirect is `UNMATCHED`: no endpoint ran, the real request follows under its own
  template, and mixing its microseconds into the target's latency would flatter the target.
- Host patterns are not part of a template: the same path on two hosts is one series.
- Routes added while serving are found when first used. Mounting an already used sub-application
  a second time while serving may keep its first template until the index is next rebuilt.

Only where no router has touched the scope (a middleware passed down a copy, or answered before
routing) are the routes asked again, and those answers are memoised too.

Everything is duck typing on the attributes of Starlette's and FastAPI's routes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast
from weakref import WeakSet

UNMATCHED: Final = "_UNMATCHED"
"""The application has routes, none of them matched."""

UNKNOWN: Final = "_UNKNOWN"
"""The application shows no routes, or resolving failed."""

_MAX_WRAPPERS: Final = 32
"""Middlewares followed through ``.app`` in search of routes."""

_MAX_DEPTH: Final = 16
"""Mounts inside mounts; a router mounted in itself would never end."""

_MAX_PLACES: Final = 20_000
"""Places in one index; a guard against route tables that branch into themselves."""

_MAX_ROUTERS: Final = 8
"""Outermost routers indexed at the same time; more than one is rare."""

_MAX_PATH: Final = 512
"""Longer paths (with method and root path) are not memoised: bytes are bounded too."""

_EAGER_REBUILDS: Final = 16
"""Rebuilds granted at once; later ones wait for as many misses as there are places."""

_LOOK_AGAIN: Final = 1000
"""Requests after which an application that showed no routes is asked for them again."""

_MOUNT_TAIL: Final = "/{path}"
_NOT_FOUND: Final = 404
_PARTIAL: Final = 1
_FULL: Final = 2


@dataclass(slots=True, eq=False)
class _Place:
    """Where a route stands: its template from the root, and what a path must match to be here.

    `prefix` begins the templates of routes inside. `app` is set on mounts and hosts that show
    routes of their own, where to end is to be unmatched; `traced` on those in which some route
    was once seen to match, so that routing inside is known to leave traces.
    """

    template: str
    patterns: tuple[re.Pattern[str], ...] = ()
    prefix: str = ""
    parent: _Place | None = None
    app: object | None = None
    traced: bool = False

    def rest(self, path: str) -> str | None:
        """Return what mounts leave of `path` ("" after a route), or None if it is not here."""
        for pattern in self.patterns:
            match = pattern.match(path)
            if match is None:
                return None
            path = "/" + match["path"] if "path" in pattern.groupindex else ""
        return path


_TOP: Final = _Place("")


@dataclass(slots=True, eq=False)
class _Index:
    """Every place below one outermost router, by the identity of what routing leaves behind."""

    router: object
    places: dict[int, tuple[object, list[_Place]]] = field(
        default_factory=dict[int, tuple[object, list[_Place]]]
    )
    mounts: list[_Place] = field(default_factory=list[_Place])
    frontends: list[_Place] = field(default_factory=list[_Place])
    tables: list[tuple[Sequence[object], int]] = field(
        default_factory=list[tuple[Sequence[object], int]]
    )
    size: int = 0
    has_hosts: bool = False

    def put(self, place: _Place, *objects: object) -> None:
        """File `place` under each object; the index keeps them alive, so ids stay theirs."""
        self.size += 1
        for found in objects:
            if found is not None:
                standing = self.places.setdefault(id(found), (found, []))[1]
                if place not in standing:
                    standing.append(place)

    def find(self, found: object) -> list[_Place]:
        """Return the places where `found` stands, none if it was never seen."""
        entry = self.places.get(id(found))
        return [] if entry is None else entry[1]

    def outdated(self) -> bool:
        """Tell whether a table of routes has changed its length since."""
        return any(len(routes) != length for routes, length in self.tables)


@dataclass(slots=True, eq=False)
class _Traces:
    """What routing left in the scope; never changed (not frozen: made per slow request)."""

    route: Any
    context: Any
    endpoint: Any
    router: Any

    @property
    def key(self) -> tuple[int, int, int, int]:
        return id(self.route), id(self.context), id(self.endpoint), id(self.router)

    def same(self, other: _Traces) -> bool:
        """Tell whether both name the same objects (routes have ``__eq__``, but no hash)."""
        return (
            self.route is other.route
            and self.context is other.context
            and self.endpoint is other.endpoint
            and self.router is other.router
        )

    def leaf(self) -> Any:
        """Return what matched last: the context or route that serves the endpoint, else that."""
        for found in (self.context, self.route):
            if found is not None and _serves(_shown(found), self.endpoint):
                return found
        return self.endpoint


class Memo(Protocol):
    """Whoever remembers what follows from templates."""

    def clear(self) -> None: ...


def matched_route(scope: Mapping[str, Any]) -> object | None:
    """Return what routing left behind that comes nearest to naming a template by itself."""
    # `in` and a subscript cost less than a call of `get`.
    if "fastapi" in scope and "effective_route_context" in scope["fastapi"]:
        context: object = scope["fastapi"]["effective_route_context"]
        if context is not None:
            return context
    return scope["route"] if "route" in scope else None


def _context(scope: Mapping[str, Any]) -> Any:
    fastapi = cast("Mapping[str, Any]", scope.get("fastapi") or {})
    return fastapi.get("effective_route_context")


class RouteResolver:
    """Resolves routed scopes of one application into route templates.

    `app` is the ASGI application below the middleware, itself possibly a chain of middlewares
    with ``.app``. `memo_size` bounds each memo, in entries; a full memo is emptied. `on_error`
    receives whatever goes wrong; nothing is ever raised.
    """

    __slots__ = (
        "_app",
        "_fast",
        "_indexes",
        "_memo_size",
        "_misses",
        "_on_error",
        "_rebuilds",
        "_shows_nothing",
        "_slow",
        "_subscribers",
        "_surveyed",
        "_walked",
    )

    def __init__(
        self,
        app: object | None,
        *,
        memo_size: int = 1024,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        self._app = app
        self._memo_size = max(1, memo_size)
        self._on_error = on_error
        self._fast: dict[int, tuple[object, object, str]] = {}
        self._slow: dict[tuple[int, int, int, int], tuple[_Traces, tuple[_Place, ...]]] = {}
        self._walked: dict[tuple[object, ...], tuple[object, str]] = {}
        self._indexes: dict[int, _Index] = {}
        self._surveyed: dict[int, _Index] = {}
        self._subscribers: WeakSet[Memo] = WeakSet()
        self._misses = 0
        self._rebuilds = 0
        self._shows_nothing = 0

    @property
    def app(self) -> object | None:
        """The application whose routes these are."""
        return self._app

    def resolve(self, scope: Mapping[str, Any], status: int = 200) -> str:
        """Return the template of the route that `scope` was routed to.

        `scope` is the very mapping that was passed down to the application, after it ran (or at
        least after routing). `status` is the response's status code, if known: it only saves work
        on a 404. Returns `UNMATCHED` if no route matched, and `UNKNOWN` if the application shows
        no routes or resolving failed.
        """
        try:
            known = self._fast.get(id(matched_route(scope)))
            if known is not None:
                _, router, template = known
                if router is None or router is scope.get("router"):
                    return template
            traces = _Traces(
                scope.get("route"), _context(scope), scope.get("endpoint"), scope.get("router")
            )
            return self._resolve_traces(scope, traces, status)
        except Exception as error:
            self._report(error)
            return UNKNOWN

    def new_endpoints(self) -> list[tuple[object, str]]:
        """What the routes lead to, each with its template; not what several routes do.

        All of a router's when it is first asked for, and again once there are other routes than
        then; so asking costs next to nothing. Routes that only routing finds are known after it.
        For one thread, which need not be one that resolves.
        """
        used = [index.router for index in list(self._indexes.values())]
        found: list[tuple[object, str]] = []
        for router in (_find_router(self._app), *used):
            known = self._surveyed.get(id(router))
            if router is not None and (known is None or known.outdated()):
                index = _Index(router)
                _fill(index, router, _TOP, 0)
                _remember(self._surveyed, id(router), index, _MAX_ROUTERS + 1)
                found += _endpoints(index)
        return found

    def is_certain(self, matched: object) -> bool:
        """Tell whether a scope with this ``matched_route`` has the same template every time."""
        known = self._fast.get(id(matched))
        return known is not None and known[1] is None

    def subscribe(self, memo: Memo) -> None:
        """Clear `memo` too whenever templates may have changed, for as long as it lives."""
        self._subscribers.add(memo)

    def _resolve_traces(self, scope: Mapping[str, Any], traces: _Traces, status: int) -> str:
        if "frontend_path" in (scope.get("fastapi") or ()):
            return _frontend(self._index(traces.router), scope) or UNKNOWN
        if traces.route is None and traces.context is None and traces.endpoint is None:
            # A router signs the scope before it matches: a signature and no match is a miss.
            return self._untouched(scope) if traces.router is None else UNMATCHED
        places = self._places(traces)
        if not places:
            return self._foreign(scope, traces)
        place = places[0] if len(places) == 1 else _pick(places, _path_below_root(scope))
        if place is None:
            return UNKNOWN
        return place.template if place.app is None else self._inside(scope, place, status)

    def _places(self, traces: _Traces) -> tuple[_Place, ...]:
        """Return the places where the matched object stands, from the memo or the index."""
        key = traces.key
        known = self._slow.get(key)
        if known is not None and known[0].same(traces):
            return known[1]
        places = self._look_up(traces)
        if places:
            _remember(self._slow, key, (traces, places), self._memo_size)
        if len(places) == 1:
            self._remember_fast(traces, places[0].template)
        return places

    def _look_up(self, traces: _Traces) -> tuple[_Place, ...]:
        leaf = traces.leaf()
        index = self._index(traces.router)
        places = index.find(leaf)
        if not places and self._may_rebuild(index):
            places = self._index(traces.router).find(leaf)
        for place in places:
            _mark_traced(place.parent)
        return _distinct(places)

    def _remember_fast(self, traces: _Traces, template: str) -> None:
        """Memoise what identity alone decides, under the id that `resolve` looks up first."""
        leaf = traces.leaf()
        first = traces.route if traces.context is None else traces.context
        if leaf is first and leaf is not None and not _is_outer(_shown(leaf)):
            # Only behind a dispatcher is there more than one outermost router to tell apart.
            router = None if _find_router(self._app) is traces.router else traces.router
            entry = (leaf, router, template)
            _remember(self._fast, id(leaf), entry, self._memo_size)

    def _index(self, router: object | None) -> _Index:
        root = _find_router(self._app) if router is None else router
        index = self._indexes.get(id(root))
        if index is None or index.router is not root:
            index = _Index(root)
            try:
                _fill(index, root, _TOP, 0)
            except Exception as error:
                self._report(error)
            _remember(self._indexes, id(root), index, _MAX_ROUTERS)
        return index

    def _may_rebuild(self, index: _Index) -> bool:
        """Forget an outdated index, but not so often that new routes in each request cost."""
        self._misses += 1
        if not index.outdated():
            return False
        if self._rebuilds >= _EAGER_REBUILDS and self._misses <= index.size:
            return False
        self._rebuilds += 1
        self._misses = 0
        memos: list[Memo] = [self._indexes, self._fast, self._slow, self._walked]
        for memo in (*memos, *self._subscribers):
            memo.clear()
        return True

    def _foreign(self, scope: Mapping[str, Any], traces: _Traces) -> str:
        """Name a match that is in no index: made on the fly, or behind an opaque wrapper."""
        template = _own_template(traces) or self._template_below(scope, traces)
        if template is None:
            return self._walk(scope, self._app if traces.router is None else traces.router)
        mounts = self._index(traces.router).mounts
        if not mounts:
            self._remember_fast(traces, template)
        return _grown_prefix(mounts, scope) + template

    def _template_below(self, scope: Mapping[str, Any], traces: _Traces) -> str | None:
        """Return the template within the innermost application, hidden from the outermost."""
        router = _find_router(scope.get("app"))
        if router is None or router is traces.router:
            return None
        places = _distinct(self._index(router).find(traces.leaf()))
        place = places[0] if len(places) == 1 else _pick(places, _below(scope, "root_path"))
        return None if place is None or place.app is not None else place.template

    def _inside(self, scope: Mapping[str, Any], place: _Place, status: int) -> str:
        """Resolve a scope that was last seen entering a mount with routes of its own."""
        if place.traced and status == _NOT_FOUND:
            return UNMATCHED
        return self._walk(scope, place.app, place)

    def _untouched(self, scope: Mapping[str, Any]) -> str:
        """Resolve a scope that no router has seen: another framework's, or answered before."""
        if self._shows_nothing:
            self._shows_nothing -= 1
            return UNKNOWN
        if _find_router(self._app) is None:
            self._shows_nothing = _LOOK_AGAIN
        return self._walk(scope, self._app)

    def _walk(self, scope: Mapping[str, Any], app: object | None, place: _Place = _TOP) -> str:
        """Ask the routes of `app` again; the last resort, memoised for paths of usual length."""
        router = _find_router(app)
        if router is None:
            return UNKNOWN
        asked = tuple(str(scope.get(part, "")) for part in ("type", "method", "root_path", "path"))
        key = (place, *asked)
        known = self._walked.get(key)
        if known is not None and known[0] is router:
            return known[1]
        found = _match(router, dict(scope), place.prefix, 0)
        index = self._index(scope.get("router"))
        if found == UNMATCHED:
            found = _frontend(index, scope) or UNMATCHED
        if sum(map(len, asked)) <= _MAX_PATH and not index.has_hosts:
            _remember(self._walked, key, (router, found), self._memo_size)
        return found

    def _report(self, error: BaseException) -> None:
        if self._on_error is None:
            return
        try:
            self._on_error(error)
        except Exception:
            return


def _endpoints(index: _Index) -> list[tuple[object, str]]:
    return [
        (found, place.template)
        for found, (place, *others) in index.places.values()
        if not others and not _template(found) and place.app is None and not place.prefix
    ]


def _fill(index: _Index, router: object, parent: _Place, depth: int) -> None:
    """File everything that stands in `router`, and in the mounts and hosts below it."""
    routes = _routes(router)
    index.tables.append((routes, len(routes)))
    for route in _expanded(routes):
        if index.size >= _MAX_PLACES:
            return
        shown = _shown(route)
        if _is_outer(shown):
            _fill_outer(index, route, parent, depth)
        elif (template := _template(shown)) is not None:
            place = _Place(parent.prefix + template, _patterns(parent, shown), parent=parent)
            index.put(place, route, shown, getattr(shown, "endpoint", None))
    _fill_frontends(index, router, parent)


def _fill_outer(index: _Index, route: object, parent: _Place, depth: int) -> None:
    """File a mount or host, and the routes inside it if it shows any."""
    shown = _shown(route)
    template = _template(shown) or _MOUNT_TAIL
    app = getattr(shown, "app", None)
    inner = _find_router(app) if depth < _MAX_DEPTH else None
    place = _Place(
        parent.prefix + template,
        _patterns(parent, shown),
        prefix=parent.prefix + template.removesuffix(_MOUNT_TAIL),
        parent=parent,
        app=None if inner is None else app,
    )
    index.put(place, route, shown, app)
    if _is_host(shown):
        index.has_hosts = True
    else:
        index.mounts.append(place)
    if inner is not None:
        _fill(index, inner, place, depth + 1)


def _fill_frontends(index: _Index, router: object, parent: _Place) -> None:
    """File FastAPI's static frontends, which are kept apart from the routes."""
    for group in _frontend_groups(router):
        origin = getattr(group, "original_route", group)
        for route in _routes(origin):
            path = getattr(group, "frontend_prefix", "") + getattr(route, "path", "")
            local = path.rstrip("/")
            pattern = re.compile(f"^{re.escape(local)}(?:/.*)?$")
            template = parent.prefix + local + _MOUNT_TAIL
            index.frontends.append(_Place(template, (*parent.patterns, pattern)))


def _frontend_groups(router: object) -> Iterator[object]:
    yield from getattr(router, "_low_priority_routes", ())
    for route in _routes(router):
        contexts = getattr(route, "effective_low_priority_routes", None)
        if callable(contexts):
            yield from cast("Iterable[object]", contexts())


def _frontend(index: _Index, scope: Mapping[str, Any]) -> str | None:
    """Return the most specific frontend at the path, None if there is none."""
    path = _path_below_root(scope)
    fitting = (place.template for place in index.frontends if place.rest(path) is not None)
    return max(fitting, key=len, default=None)


def _match(router: object, scope: dict[str, Any], prefix: str, depth: int) -> str:
    """Route `scope` as a router does: the first full match, else the first partial one."""
    partial: object | None = None
    result = UNKNOWN
    for route in _expanded(_routes(router)):
        matches = getattr(route, "matches", None)
        if not callable(matches):
            continue
        result = UNMATCHED
        match, child_scope = cast("tuple[object, dict[str, Any]]", matches(scope))
        degree = getattr(match, "value", 0)
        if degree == _FULL:
            return _follow(_shown(route), scope | child_scope, prefix, depth)
        if degree == _PARTIAL and partial is None:
            partial = route
    return result if partial is None else prefix + (_template(_shown(partial)) or "")


def _follow(route: object, scope: dict[str, Any], prefix: str, depth: int) -> str:
    """Name a full match: a route by its template, a mount or host by what matches inside."""
    outer = _is_outer(route)
    template = _template(route)
    if template is None:
        template = _MOUNT_TAIL if outer else ""
    inner = _find_router(getattr(route, "app", None)) if outer and depth < _MAX_DEPTH else None
    if inner is None:
        return prefix + template or UNKNOWN
    return _match(inner, scope, prefix + template.removesuffix(_MOUNT_TAIL), depth + 1)


def _find_router(app: object | None) -> object | None:
    """Follow ``.app`` from one middleware to the next, down to what shows a table of routes."""
    for _ in range(_MAX_WRAPPERS):
        if app is None:
            return None
        for candidate in (getattr(app, "router", None), app):
            if isinstance(getattr(candidate, "routes", None), (list, tuple)):
                return cast("object", candidate)
        app = getattr(app, "app", None)
    return None


def _routes(router: object) -> Sequence[object]:
    routes = getattr(router, "routes", ())
    return cast("Sequence[object]", routes) if isinstance(routes, (list, tuple)) else ()


def _expanded(routes: Iterable[object]) -> Iterator[object]:
    """Yield routes, and in place of an included router (FastAPI >= 0.137) its contexts."""
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if callable(contexts):
            yield from cast("Iterable[object]", contexts())
        else:
            yield route


def _shown(route: Any) -> Any:
    """Return the object that carries template and endpoint: of a context its prefixed route."""
    prefixed = getattr(route, "starlette_route", None)
    return route if prefixed is None else prefixed


def _is_host(route: object) -> bool:
    return hasattr(route, "host_regex")


def _is_outer(route: object) -> bool:
    """Tell whether `route` hands over to another application: a mount or a host."""
    return hasattr(route, "app") and not hasattr(route, "endpoint")


def _serves(route: object, endpoint: object) -> bool:
    """Tell whether `endpoint` is what `route` leads to; a scope without endpoint denies nothing."""
    own = getattr(route, "app" if _is_outer(route) else "endpoint", None)
    return own is endpoint or endpoint is None


def _template(route: object) -> str | None:
    """Return the route's own template without convertors; a path alone is never believed."""
    template = getattr(route, "path_format", None)
    return template if isinstance(template, str) else None


def _own_template(traces: _Traces) -> str | None:
    """Return the template of the freshest trace that is a route and carries one."""
    shown = [_shown(found) for found in (traces.context, traces.route) if found is not None]
    # A route may name another endpoint than its own; such a one is better than none.
    shown.sort(key=lambda route: not _serves(route, traces.endpoint))
    return next((t for r in shown if not _is_outer(r) and (t := _template(r))), None)


def _patterns(parent: _Place, route: object) -> tuple[re.Pattern[str], ...]:
    pattern = getattr(route, "path_regex", None)
    if not isinstance(pattern, re.Pattern):
        return parent.patterns
    return (*parent.patterns, cast("re.Pattern[str]", pattern))


def _distinct(places: Iterable[_Place]) -> tuple[_Place, ...]:
    """Keep one place for each template."""
    return tuple({place.template: place for place in places}.values())


def _pick(places: Iterable[_Place], path: str) -> _Place | None:
    """Return the first place that `path` fits, as a router would try them."""
    return next((place for place in places if place.rest(path) is not None), None)


def _mark_traced(place: _Place | None) -> None:
    while place is not None and place is not _TOP:
        place.traced = True
        place = place.parent


def _path_below_root(scope: Mapping[str, Any]) -> str:
    """Return the path that the outermost router saw, without a proxy's root path."""
    return _below(scope, "app_root_path" if "app_root_path" in scope else "root_path")


def _below(scope: Mapping[str, Any], root_key: str) -> str:
    """Return the path without a root path; one that is not below it is left as it is."""
    path: str = scope.get("path", "")
    below = path.removeprefix(scope.get(root_key, ""))
    return below if below == "" or below.startswith("/") else path


def _grown_prefix(mounts: Iterable[_Place], scope: Mapping[str, Any]) -> str:
    """Return the templates of the mounts by which ``root_path`` has grown, "" if it has not."""
    root: str = scope.get("root_path", "")
    base: str = scope.get("app_root_path", root)  # mounts leave it behind as they found it
    if root == base or not root.startswith(base):
        return ""
    growth = root[len(base) :] + "/"
    return next((place.prefix for place in mounts if place.rest(growth) == "/"), "")


def _remember(memo: dict[Any, Any], key: object, value: object, limit: int) -> None:
    """Store in a memo that is emptied when full: cheap, strictly bounded, and always right."""
    if len(memo) >= limit and key not in memo:
        memo.clear()
    memo[key] = value
