"""Await chains: where a suspended coroutine is waiting, and for what.

A coroutine that waits knows whom it awaits (``cr_await``), and so does that one, down to the future
that will wake them all. Followed from the app's coroutine this is the stack of the request, though
nothing of it is on any thread: `walk` turns it into a `Stack`, so that whatever names stacks names
chains too, and `locate` says which line of the user's code waits, and what it called.

Some links lead nowhere from Python. What an ``async for`` awaits, or an ``__await__`` that hands
out another coroutine's, are objects of C without a single attribute. ``gc.get_referents`` shows
what they hold. It is asked about the few types in `_LINKS` and `_FUTURE` only: each of them holds
the next link first and at most two more objects, and the collector's visit runs no Python code.

Other threads may ask, too. Python hands the GIL over after calls and at the end of loops, never
while an attribute of a coroutine is read, so a line and what it awaits are read together, without a
call between them. Where the loop moves on meanwhile, the chain ends early; it never pairs a line
with what another one awaits. A coroutine that is running awaits nothing: it is the last in its
chain, and the thread that runs it has the rest.

No value of the user's is looked at, nor any code of theirs run (short of a task class of their own,
which is asked for its coroutine): what a chain says is made of the names of functions and types.
"""

from __future__ import annotations

import gc
from types import (
    AsyncGeneratorType,
    CodeType,
    CoroutineType,
    FunctionType,
    GeneratorType,
    GetSetDescriptorType,
    MemberDescriptorType,
)
from typing import Any, Final, NamedTuple

from loopscope.core.stacks import Stack, UserCode, is_ours, line_at

_MAX_LINKS: Final = 1000
"""Links followed at most; Python's own recursion limit, so nothing real is cut short."""

_MAX_NAME: Final = 100
"""Characters of a callee or leaf."""

_LINKS: Final = frozenset(
    {
        "async_generator_asend",
        "async_generator_athrow",  # aclose() as well
        "anext_awaitable",
        "coroutine_wrapper",
    }
)
"""Types without attributes that hold the next link; Cython has its own of the same names."""

_FUTURE: Final = "FutureIter"
"""The type that holds a future in their place: the end."""

_ATTRIBUTES: Final = (("cr_await", "cr_code"), ("gi_yieldfrom", "gi_code"), ("ag_await", "ag_code"))

_FUTURES: Final = {
    "_chain_future.<locals>._call_check_cancel": "concurrent.futures.Future",
    "shield.<locals>._outer_done_callback": "shield",
}
"""Whom asyncio makes a plain future for, told by the callback that it leaves there."""

_STATEMENTS: Final = frozenset({"__aenter__", "__aexit__", "__anext__", "__await__"})
"""What ``async with``, ``async for`` and ``await`` call by themselves: names that nobody chose."""

_MAX_PLACES: Final = 4096
"""Lines remembered; a service waits in some hundreds of places."""

_places: dict[int, tuple[CodeType, int]] = {}
"""Code and line by the address of the instruction: code objects contain theirs, so no two places
share one, and as the values keep the code alive, no address is used again. Full, it starts afresh.
"""

_COMPILED: Final = -1
"""In place of an instruction, where Cython compiled the code; it is on no line."""

_UNKNOWN: Final = "unknown"
"""What an awaited object is called that cannot be looked at."""


class Chain(NamedTuple):
    """What a coroutine awaited, as code objects and lines; it keeps nothing else alive."""

    stack: Stack
    """Outermost first. Line 0 where Python does not know, as in code that Cython compiled."""
    leaf: str
    """What the innermost frame awaits, as `name` has it; "" if nothing, or nobody knows."""


class Wait(NamedTuple):
    """Where a chain waits, in terms of the user's code."""

    site: str
    """``app/report.py:41 build``; "" where no frame is the user's."""
    callee: str
    """What that line waits for: ``Pool.acquire``, ``Queue.get``, ``gather``, ``task:refresh``."""


def walk(awaitable: Any, limit: int = 100) -> Chain:
    """Where ``awaitable``, a coroutine or generator, is suspended.

    The ``limit`` innermost frames where there are more. What is finished, or no coroutine at all,
    has an empty stack. Never raises: a chain that cannot be followed ends early.
    """
    found: list[tuple[CodeType, int]] = []
    leaf = ""
    link = awaitable
    try:
        for _ in range(_MAX_LINKS):
            kind = type(link)  # pyright: ignore[reportUnknownVariableType]
            if kind is CoroutineType:
                frame = link.cr_frame
                link = link.cr_await
            elif kind is GeneratorType:
                frame = link.gi_frame
                link = link.gi_yieldfrom
            elif kind is AsyncGeneratorType:
                frame = link.ag_frame
                link = link.ag_await
            elif kind.__name__ in _LINKS:
                link = _held_by(link)
                continue
            elif kind.__name__ == _FUTURE:
                leaf = name(_held_by(link))
                break
            else:
                code, below = _compiled(link)
                if code is None:
                    leaf = name(link)
                    break
                found.append(_places.get(id(code) + _COMPILED) or _place(code, _COMPILED))
                link = below
                continue
            if frame is None:  # it is finished
                break
            code = frame.f_code
            at = frame.f_lasti
            found.append(_places.get(id(code) + at) or _place(code, at))
            if link is None:
                break
    except Exception:  # attributes of foreign types may do anything; what is known stands
        leaf = _UNKNOWN
    return Chain(tuple(found[-limit:]), leaf)


def locate(chain: Chain, users: UserCode) -> Wait:
    """Which of the ``users``' lines waits, and for what.

    Where no frame is the user's, the callee is the innermost frame: all that can be said of it.
    """
    stack = chain.stack
    site = users.find(stack)
    if site is not None:
        return Wait(users.describe(*stack[site]), _callee(chain, site + 1))
    return Wait("", _callee(chain, len(stack) - 1) if stack else chain.leaf)


def name(awaited: object) -> str:
    """What to call the future-like end of a chain; "" for None.

    ``task:`` and the task's coroutine, ``gather``, ``shield``, ``concurrent.futures.Future`` (work
    for an executor), or the name of the type; ``unknown`` where that cannot be had. Never an
    address, never a value; never raises.
    """
    if awaited is None:
        return ""
    try:
        called = type(awaited).__name__
        if called == "Future":
            return _made_for(awaited) or called
        if called == "_GatheringFuture":
            return "gather"
        if _is_task(awaited):
            called = f"task:{_coroutine_name(awaited)}"
        return called[:_MAX_NAME]
    except Exception:
        return _UNKNOWN


def _place(code: CodeType, at: int) -> tuple[CodeType, int]:
    """``code`` and the line of its instruction ``at``.

    Not asked of the frame, which may have moved on, and where that would cost as much as all other
    links together once a function has a few hundred lines.
    """
    place = code, line_at(code, at)
    if len(_places) >= _MAX_PLACES:
        _places.clear()
    _places[id(code) + at] = place
    return place


def _held_by(link: object) -> Any:
    """The next link; None where it has let go of it. Types of C hold their own type as well."""
    for held in gc.get_referents(link):
        if not isinstance(held, type):
            return held
    return None


def _compiled(link: object) -> tuple[CodeType | None, Any]:
    """The code of a coroutine that Cython made, and what it awaits; None if it is none.

    Its frame has a line, but that of the function, or none. Properties written in Python are not
    asked: they would be the user's code.
    """
    kind = type(link)
    for awaits, code in _ATTRIBUTES:
        attribute = _of_type(kind, awaits)
        if isinstance(attribute, (MemberDescriptorType, GetSetDescriptorType)):
            found = getattr(link, code, None)
            return (found, getattr(link, awaits)) if type(found) is CodeType else (None, None)
    return None, None


def _of_type(kind: type, attribute: str) -> object:
    """What ``kind`` defines, without asking its metaclass."""
    try:
        return type.__getattribute__(kind, attribute)
    except AttributeError:
        return None


def _is_task(awaited: object) -> bool:
    return _of_type(type(awaited), "get_coro") is not None


def _coroutine_name(task: Any) -> str:
    found = getattr(task.get_coro(), "__qualname__", None)
    return found if type(found) is str else ""


def _made_for(future: Any) -> str:
    for callback, *_ in future._callbacks or ():  # noqa: SLF001
        if type(callback) is FunctionType:
            made_for = _FUTURES.get(callback.__code__.co_qualname)
            if made_for is not None:
                return made_for
    return ""


def _callee(chain: Chain, below: int) -> str:
    """The first frame from ``below`` on that has a name to show; failing that, the first one."""
    stack = chain.stack
    for at in range(below, len(stack)):
        code = stack[at][0]
        if not _hands_on(code):
            return code.co_qualname[:_MAX_NAME]
    if below < len(stack):
        return stack[below][0].co_qualname.removesuffix(".__await__")[:_MAX_NAME]
    return chain.leaf


def _hands_on(code: CodeType) -> bool:
    """Whether ``code`` only awaits what it was given, which then says more than its own name."""
    name = code.co_name
    if name in _STATEMENTS or name == "wait_for" or is_ours(code):
        return True
    return "<locals>" in code.co_qualname and ("wrap" in name or name == "inner")
