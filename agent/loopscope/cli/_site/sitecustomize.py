"""What ``loopscope run`` has every Python below it run at its start: measure what servers serve.

Python imports a module called ``sitecustomize`` before anything else; by ``PYTHONPATH`` this is the
one it finds, in each process of the service, forked or spawned. It leaves an entry in
``sys.meta_path``, takes its directory off ``sys.path`` again and gives way to the ``sitecustomize``
that would have been found without it, or to there being none.

Most processes serve nothing, and should not notice. So nothing is imported here, loopscope least of
all: it is, once a server has an application in its hands. What others pay is one small file, and a
look into a dictionary for every module they import. That is why this is no ``core.imports``.

Applications are taken over where a server hands itself the one it is about to serve. There, unlike
in the constructor of some framework, it does not matter who wrote the application, whether a
factory made it, or how it was imported, and an application that is merely imported, by a test or a
supervisor, stays as it was. The price is a list of servers. Loopscope is then the outermost
middleware, as in ``app = Loopscope(app)``. An application that has the middleware in its source
keeps its own, and with it the settings that stand there.

Whatever goes wrong is said on stderr, once a process, and the service runs unmeasured.
"""

import sys

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


def _uvicorn(config: "ModuleType") -> None:
    """Also gunicorn's workers that are uvicorn."""
    _after(config.Config, "load", "loaded_app")


def _hypercorn(app_wrappers: "ModuleType") -> None:
    _after(app_wrappers.ASGIWrapper, "__init__", "app")


def _gunicorn(gasgi: "ModuleType") -> None:
    """Its own ASGI worker."""
    _after(gasgi.ASGIWorker, "load_wsgi", "asgi")


def _granian(asgi: "ModuleType") -> None:
    """Lifespan and requests reach an application by ways of their own."""
    original = asgi._callback_wrapper  # noqa: SLF001

    def _callback_wrapper(callback: "Any", *args: "Any", **keywords: "Any") -> "Any":
        return original(_measured(callback), *args, **keywords)

    _after(asgi.LifespanProtocol, "__init__", "callable")
    asgi._callback_wrapper = _callback_wrapper  # type: ignore[attr-defined]  # noqa: SLF001


SERVERS: "dict[str, Callable[[ModuleType], None]]" = {
    "uvicorn.config": _uvicorn,
    "hypercorn.app_wrappers": _hypercorn,
    "gunicorn.workers.gasgi": _gunicorn,
    "granian.asgi": _granian,
}
"""What to do with a module of a server, as soon as it has been imported."""


def _after(owner: "type[Any]", method: str, attribute: str) -> None:
    """Once ``method`` of an ``owner`` has run, its ``attribute`` is the application."""
    from functools import wraps

    original: Callable[..., Any] = vars(owner)[method]

    @wraps(original)
    def measuring(self: "Any", *args: "Any", **keywords: "Any") -> "Any":
        result = original(self, *args, **keywords)
        setattr(self, attribute, _measured(getattr(self, attribute)))
        return result

    setattr(owner, method, measuring)


_measured_so_far: "list[tuple[Any, Any]]" = []
"""Applications, and what stands for each: one middleware, whoever asks and how often."""


def _measured(app: "Any") -> "Any":
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


def _middleware(app: "Any") -> "Any":
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


class _Finder:
    """Part of the import system: has the loaders of ``SERVERS`` tell when they have run."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """None, for all other modules."""
        if name not in SERVERS:
            return None
        finders = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec and find_spec(name, path, target)
            if spec is not None:
                _listen(name, spec.loader)
                return spec
        return None


def _listen(name: str, loader: "Any") -> None:
    """Have ``loader`` tell when it has run the module; it stays the module's loader."""
    run = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        loader.__dict__.pop("exec_module", None)  # gone if another hook has listened, too
        run(module)
        _arrived(name, module)

    try:
        loader.exec_module = exec_module
    except Exception as error:  # no room for attributes
        _complain(f"{name} is imported in a way of its own ({error})")


def _arrived(name: str, module: "ModuleType") -> None:
    take_over = SERVERS.pop(name, None)
    try:
        if take_over is not None:
            take_over(module)
    except Exception as error:
        _complain(f"does not know this version of {name} ({type(error).__name__}: {error})")


_has_complained = False


def _complain(why: str) -> None:
    global _has_complained
    if not _has_complained and sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        _has_complained = True
        print(f"loopscope run: not measuring: loopscope {why}", file=sys.stderr)


def _install() -> None:
    for name in list(SERVERS):
        if name in sys.modules:  # by a .pth file
            _arrived(name, sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def _give_way() -> None:
    """Import the ``sitecustomize`` behind this one.

    Where there is none the error is the one that Python's ``site`` expects, and passes over.
    """
    here = __file__.rpartition("/")[0]
    sys.path[:] = [each for each in sys.path if each != here]
    sys.path_importer_cache.pop(here, None)
    del sys.modules[__name__]
    __import__(__name__)


if __name__ == "sitecustomize":
    try:
        _install()
    except Exception as failure:
        _complain(f"{type(failure).__name__}: {failure}")
    _give_way()
