"""Which of the user's lines leads to a place in a library, found quickly the second time."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from importlib import import_module
from types import FunctionType
from typing import Any

import pytest

from loopscope.core.caller import Caller
from loopscope.core.stacks import UserCode, line_at


def library(source: str, **names: object) -> FunctionType:
    """The function that ``source`` defines, as if it came with an installed package."""
    scope = dict(names)
    exec(compile(source, "/usr/lib/python3/site-packages/pools/pool.py", "exec"), scope)  # noqa: S102
    return next(each for each in scope.values() if isinstance(each, FunctionType))


users = UserCode()
caller = Caller(users)
deep = library("def deep(depth): return deep(depth - 1) if depth else find()", find=caller.find)
back = library("def back(function, depth): return function(depth)")
spawn = library(
    "async def spawn(function, *arguments): return greenlet(function).switch(*arguments)",
    greenlet=import_module("greenlet").greenlet,
)


def line(function: FunctionType, *arguments: object) -> str:
    return users.describe_place(function(*arguments))


def test_the_line_is_the_callers_each_time() -> None:
    """From the same distance and from another one, and from one line or the next."""
    depths = (5, 5, 0, 9, 5)
    first = [deep(depth) for depth in depths]
    second = [deep(depth) for depth in depths]
    numbers = [line_at(*place) for place in first + second]
    start = test_the_line_is_the_callers_each_time.__code__.co_firstlineno
    assert numbers == [start + 3] * 5 + [start + 4] * 5
    assert users.describe_place(first[0]).startswith(f"tests/core/test_caller.py:{start + 3} ")


def test_the_innermost_of_the_users_lines_counts() -> None:
    """Also where another one is as far away as the user's was last time."""
    assert line(deep, 8).endswith(" line")

    def called(depth: int) -> object:
        return deep(depth)

    for depth in range(8):
        assert line(back, called, depth).endswith("<locals>.called")


def test_a_library_that_calls_by_itself_is_nobodys_line() -> None:
    """Nor is there one where none of the frames is the user's."""
    nobody = Caller(UserCode(roots=["/nowhere"]))
    assert nobody.find() is None


def test_who_runs_a_loop_is_no_caller() -> None:
    """A plain function further out than a coroutine drives it: uvloop shows no frame between."""
    lone = library("async def lone(): return find()", find=caller.find)
    assert driven(lone()) is None

    async def mine() -> object:
        return await lone()

    assert users.describe_place(driven(mine())).endswith("<locals>.mine")


def test_who_waits_for_a_greenlet_is_the_caller_each_time() -> None:
    """From one line or the next, through libraries of one depth and of another."""

    async def one(depth: int) -> Any:
        return await spawn(deep, depth)

    async def other(depth: int) -> Any:
        return await spawn(deep, depth)

    for depth in (5, 5, 2, 5, 2, 2):
        for function in (one, other, other, one):
            assert users.describe_place(driven(function(depth))).endswith(
                f"<locals>.{function.__name__}"
            )


def test_the_users_own_code_in_a_greenlet_comes_before_who_waits_for_it() -> None:
    """Also where the greenlet is as deep as one that had only a library's code in it."""

    def called(depth: int) -> Any:
        return deep(depth)

    async def waits(function: Callable[[int], Any], depth: int) -> Any:
        return await spawn(function, depth)

    for depth in range(1, 6):
        assert users.describe_place(driven(waits(deep, depth))).endswith("<locals>.waits")
        assert users.describe_place(driven(waits(called, depth - 1))).endswith("<locals>.called")


def driven(coroutine: Coroutine[Any, Any, Any]) -> Any:
    with pytest.raises(StopIteration) as ended:
        coroutine.send(None)
    return ended.value.value
