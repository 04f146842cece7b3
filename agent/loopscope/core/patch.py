"""One attribute of somebody else's class or module with ours in its place, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


class Patch:
    """Replaces ``owner.name`` by what ``make`` returns for the original. Starts at once.

    The original is the very object in the class' dictionary: a ``classmethod`` is one, no method.
    Raises ``KeyError`` where there is no attribute of its own by that name.
    """

    def __init__(self, owner: type | ModuleType, name: str, make: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._original = vars(owner)[name]
        self._replacement = make(self._original)
        setattr(owner, name, self._replacement)

    def undo(self) -> None:
        """Put the original back, unless somebody has replaced ours: theirs may well call it."""
        if vars(self._owner).get(self._name) is self._replacement:
            setattr(self._owner, self._name, self._original)
