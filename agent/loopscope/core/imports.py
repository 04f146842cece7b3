"""Hear of a module once it has been imported, without importing it.

Whoever hooks into a library cannot know whether the service uses it, and must not be the one who
loads it. A finder at the head of ``sys.meta_path`` is asked for every module that is not loaded
yet; ours answers for the few names it waits for, with what the finders behind it find, and has the
module's own loader tell when it has run. It is there only while it waits: the last module that
arrives, or ``stop``, removes it. To every other import of a new module it adds one look into a
dictionary.

The loader stays the one the module would have had, and so do the module's ``__loader__`` and
``__spec__``: what is replaced, and put back before anything runs, is ``exec_module`` of that one
object. What shows is a frame in the traceback of an import that fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from loopscope.core.faults import Faults

Listener = Callable[[ModuleType], None]


class _Awaited:
    """A module that is not there yet, and who wants to hear of it."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.loader: object = None
        """The latest loader found for it, which will tell."""


class Imports:
    """Calls listeners with the modules they wait for. A listener that raises is a fault."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._awaited: dict[str, _Awaited] = {}

    def when_imported(self, name: str, listener: Listener) -> None:
        """Call ``listener`` once with the module: now if it is loaded, else as soon as it is.

        A module that another thread is just importing is waited for.
        """
        if sys.modules.get(name) is not None:
            self._tell(listener, import_module(name))
            return
        self._awaited.setdefault(name, _Awaited()).listeners.append(listener)
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def stop(self) -> None:
        """Wait for nothing any more."""
        self._awaited.clear()
        self._withdraw()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Part of the import system's protocol. None for all that is not waited for."""
        awaited = self._awaited.get(name)
        if awaited is None:
            return None
        before = awaited.loader
        spec = self._ask_others(name, path, target)
        # Another hook may have asked the whole import system, us included, to find it.
        if spec is not None and awaited.loader is before:
            awaited.loader = spec.loader
            self._listen(name, spec.loader)
        return spec

    def _ask_others(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None
    ) -> ModuleSpec | None:
        """What the finders behind us find."""
        finders = list(sys.meta_path)
        position = finders.index(self) + 1 if self in finders else 0
        for finder in finders[position:]:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec and find_spec(name, path, target)
            if spec is not None:
                return spec
        return None

    def _listen(self, name: str, loader: Any) -> None:
        """Have ``loader`` tell when it has run the module."""
        if isinstance(loader, type) or not hasattr(loader, "exec_module"):
            return  # built into the interpreter: one loader for all of them, not to be touched
        run = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            run(module)
            self._arrived(name, module)

        try:
            loader.exec_module = exec_module
        except Exception as error:  # no room for attributes
            self._faults.report("imports", error)

    def _arrived(self, name: str, module: ModuleType) -> None:
        awaited = self._awaited.pop(name, None)
        if not self._awaited:
            self._withdraw()
        for listener in awaited.listeners if awaited is not None else ():
            self._tell(listener, module)

    def _tell(self, listener: Listener, module: ModuleType) -> None:
        try:
            listener(module)
        except Exception as error:
            self._faults.report("imports", error)

    def _withdraw(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)
