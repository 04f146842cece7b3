"""Which faults are on: at start-up those that ``DEMO_FAULTS`` names, then whatever one asks for."""

from __future__ import annotations

import os
from collections.abc import Callable

_on = {name for name in os.environ.get("DEMO_FAULTS", "").split(",") if name}


def is_on(fault: Callable[..., object]) -> bool:
    """Whether ``fault``, by its function's name, is to happen."""
    return fault.__name__ in _on


def switch(name: str, *, on: bool) -> None:
    """Let a fault happen from now on, or no more."""
    (_on.add if on else _on.discard)(name)
