"""Where servers are handed to loopscope: each by the application it is about to serve.

There, unlike in the constructor of some framework, it does not matter who wrote the application,
whether a factory made it, or how it was imported, and one that is merely imported, by a test or a
supervisor, stays as it was. The price is a list of servers. Loopscope is then the outermost
middleware, as in ``app = Loopscope(app)``. An application that has the middleware in its source
keeps its own, and with it the settings that stand there.

Loaded by ``_site/sitecustomize`` as soon as a server is imported. loopscope itself is imported no
sooner than there is an application: it imports uvicorn, which may be half imported now.

Whatever goes wrong is said on stderr, once a process, and the service runs unmeasured.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any


def take_over(name: str, module: ModuleType) -> None:
    """Have the server, of which ``module`` called ``name`` has been imported, measured."""
    try:
        _SERVERS[name](module)
    except Exception as error:
        _complain(f"does not know this version of {name} ({type(error).__name__}: {error})")


def _uvicorn(config: ModuleType) -> None:
    """Also gunicorn's workers that are uvicorn."""
    _after(config.Config, "load", "loaded_app")


def _hypercorn(app_wrappers: ModuleType) -> None:
    _after(app_wrappers.ASGIWrapper, "__init__", "app")


def _gunicorn(gasgi: ModuleType) -> None:
    """Its own ASGI worker."""
    _after(gasgi.ASGIWorker, "load_wsgi", "asgi")


def _granian(asgi: ModuleType) -> None:
    """Lifespan and requests reach an application by ways of their own."""
    original = asgi._callback_wrapper  # noqa: SLF001

    def _callback_wrapper(callback: Any, *args: Any, **keywords: Any) -> Any:
        return original(_measured(callback), *args, **keywords)

    _after(asgi.LifespanProtocol, "__init__", "callable")
    asgi._callback_wrapper = _callback_wrapper  # type: ignore[attr-defined]  # noqa: SLF001


_SERVERS: dict[str, Callable[[ModuleType], None]] = {
    "uvicorn.config": _uvicorn,
    "hypercorn.app_wrappers": _hypercorn,
    "gunicorn.workers.gasgi": _gunicorn,
    "granian.asgi": _granian,
}
"""What to do with a module of a server, as soon as it has been imported."""


def _after(owner: type[Any], method: str, attribute: str) -> None:
    """Once ``method`` of an ``owner`` has run, its ``attribute`` is the application."""
    original: Callable[..., Any] = vars(owner)[method]

    @wraps(original)
    def measuring(self: Any, *args: Any, **keywords: Any) -> Any:
        result = original(self, *args, **keywords)
        setattr(self, attribute, _measured(getattr(self, attribute)))
        return result

    setattr(owner, method, measuring)


_measured_so_far: list[tuple[Any, Any]] = []
"""Applications, and what stands for each: one middleware, whoever asks and how often."""


def _measured(app: Any) -> Any:
    """What a server should serve in place of ``app``."""
    try:
        for known, measured in _measured_so_far:
            if app is known or app is measured:
                return measured
        measured = _middleware(app)
    except ImportError as error:
        _complain(f"cannot be imported by {sys.executable} ({error}); install it there")
        return app
    except Exception as error:
        _complain(f"{type(error).__name__}: {error}")
        return app
    _measured_so_far.append((app, measured))
    return measured


def _middleware(app: Any) -> Any:
    """A Loopscope around ``app``; ``app`` itself where that is for others to decide."""
    from loopscope.admin.app import Console
    from loopscope.asgi import Loopscope
    from loopscope.settings import resolve

    inner = app
    for _ in range(32):  # wrappers; one that wraps itself would never end
        middleware = getattr(inner, "user_middleware", ())  # Starlette's, before it is built
        if isinstance(inner, Loopscope | Console) or any(
            getattr(each, "cls", None) is Loopscope for each in middleware
        ):
            return app
        inner = getattr(inner, "app", None)
    return Loopscope(app) if resolve({}).enabled else app


_has_complained = False


def _complain(why: str) -> None:
    global _has_complained
    if not _has_complained and sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        _has_complained = True
        print(f"loopscope run: not measuring: loopscope {why}", file=sys.stderr)
