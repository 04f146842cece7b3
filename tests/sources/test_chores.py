"""Which tasks are left alone."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any

from loopscope.sources.chores import CHORES, Chore


def traced(function: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Any]:
    """As tracing libraries have it: one wrapper's code, around whatever it is put."""

    @wraps(function)
    async def wrapper(*arguments: Any) -> None:
        await function(*arguments)

    return wrapper


class Pool:
    async def wake(self) -> None: ...

    @traced
    async def fill(self) -> None: ...


def test_a_chore_is_one_until_it_is_undone() -> None:
    """Undone twice, it is not taken from whoever else has said so."""
    before = list(CHORES)
    first, second = Chore(Pool, "wake"), Chore(Pool, "wake")
    first.undo()
    first.undo()
    assert [*before, Pool.wake.__code__] == CHORES
    second.undo()
    assert before == CHORES


def test_what_somebody_has_wrapped_is_no_chore() -> None:
    """Its code is the wrapper's, and so is that of whatever else they have wrapped."""
    before = list(CHORES)
    chore = Chore(Pool, "fill")
    assert before == CHORES
    chore.undo()


def test_a_library_without_it_has_no_chore() -> None:
    """Another version's pool is measured all the same."""
    before = list(CHORES)
    chore = Chore(Pool, "missing")
    assert before == CHORES
    chore.undo()
