"""What ``loopscope run`` has every Python below it run at its start.

Python imports a module called ``sitecustomize`` before anything else; by ``PYTHONPATH`` this is the
one it finds, in each process of the service, forked or spawned. It leaves an entry in
``sys.meta_path``, takes its directory off ``sys.path`` again and gives way to the ``sitecustomize``
that would have been found without it, or to there being none.

Most processes serve nothing, and should not notice. So nothing is imported here, loopscope least of
all; and what is done to servers stands in a file of its own (``_seams``), for many images keep no
compiled files. That is why this is no ``core.imports``.
"""

import sys

TYPE_CHECKING = False  # typing's own takes longer to import than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

_HERE = __file__.rpartition("/")[0]

_awaited = {"uvicorn.config", "hypercorn.app_wrappers", "gunicorn.workers.gasgi", "granian.asgi"}
"""Modules of servers, to each of which something is done as soon as it has been imported."""

_seams: "Any" = None


class _Finder:
    """Part of the import system: has the loaders of what is awaited tell when they have run."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """None, for all other modules."""
        if name not in _awaited or self not in sys.meta_path:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec and find_spec(name, path, target)
            if spec is not None:
                _listen(name, spec.loader)
                return spec
        return None


def _listen(name: str, loader: "Any") -> None:
    """Have ``loader`` tell when it has run the module; it stays the module's loader."""
    try:
        run = loader.exec_module

        def exec_module(module: "ModuleType") -> None:
            loader.__dict__.pop("exec_module", None)  # gone if another hook has listened, too
            run(module)
            _arrived(name, module)

        loader.exec_module = exec_module
    except Exception as error:  # no room for attributes
        _complain(error)


def _arrived(name: str, module: "ModuleType") -> None:
    global _seams
    try:
        if name in _awaited:
            _awaited.remove(name)
            _seams = _seams or _load_seams()
            _seams.take_over(name, module)
    except Exception as error:
        _complain(error)


def _load_seams() -> "Any":
    """Beside the package, which is not to be imported yet, if it can be here at all."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location("loopscope_seams", _HERE.rpartition("/")[0] + "/_seams.py")
    assert spec is not None and spec.loader is not None
    seams = module_from_spec(spec)
    spec.loader.exec_module(seams)
    return seams


def _complain(error: Exception) -> None:
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison]
        print(f"loopscope run: not measuring: {error!r}", file=sys.stderr)


def _install() -> None:
    for name in _awaited.intersection(sys.modules):  # imported by a .pth file
        _arrived(name, sys.modules[name])
    sys.meta_path.insert(0, _Finder())


def _give_way() -> None:
    """Import the ``sitecustomize`` behind this one.

    Where there is none the error is the one that Python's ``site`` expects, and passes over.
    """
    sys.path[:] = [each for each in sys.path if each != _HERE]
    sys.path_importer_cache.pop(_HERE, None)
    del sys.modules[__name__]
    __import__(__name__)


if __name__ == "sitecustomize":
    try:
        _install()
    except Exception as failure:
        _complain(failure)
    _give_way()
