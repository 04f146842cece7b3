"""What all adapters have in common: they patch when their library is there, and never harm it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import ClassVar

from loopscope.core.faults import Faults
from loopscope.core.patch import Patch
from loopscope.sources.pools.meter import Meter, PoolBook, Use


class Adapter:
    """Measures the pools of one library, from ``patch`` to ``unpatch``."""

    module: ClassVar[str]
    """The library's top-level package: its submodules are half made while they are imported."""

    def __init__(self, book: PoolBook, faults: Faults) -> None:
        self.book = book
        self._faults = faults
        self._patches: list[Patch] = []
        self._is_on = False

    def arrived(self, module: ModuleType) -> None:
        """The library is there. One that has changed too much is left alone, which is said once."""
        self._is_on = True
        try:
            self.patch(module)
        except Exception as error:
            self.unpatch()
            self._faults.report(f"pools.{self.module}", error)

    def patch(self, module: ModuleType) -> None:
        """Replace what leads to the pools in ``module``. May raise."""
        raise NotImplementedError

    def keep(self, patch: Patch) -> None:
        """Have ``patch`` undone by ``unpatch``."""
        self._patches.append(patch)

    def unpatch(self) -> None:
        """Put everything back; what somebody has put theirs around passes on untouched."""
        self._is_on = False
        while self._patches:
            self._patches.pop().undo()

    def ask(self, meter: Callable[[], Meter | None]) -> Use | None:
        """Somebody wants something from the pool of that meter; None where it is not measured."""
        if not self._is_on:
            return None
        try:
            found = meter()
            return None if found is None else found.ask()
        except Exception as error:
            self._failed(error)
            return None

    def safely(self, note: Callable[[], None]) -> None:
        """Call ``note``; what goes wrong in there is no concern of the library's."""
        try:
            note()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        part = f"pools.{self.module}"
        self._faults.report(part, error)
        if self._faults.is_off(part):
            self._is_on = False
