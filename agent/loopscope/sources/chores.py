"""Chores: tasks in which a library puts back what a request is done with.

asyncpg's pool gives back in a task of its own, so that a cancelled request does not lose it a
connection, and aiomysql's wakes up the next who waits in one. The request's code asked for neither,
they do next to nothing but wait, and to follow one costs several times what it does. So whoever
knows the library says which of its coroutines are chores, and the task factory leaves these alone:
what they do is a part of the gap in which the request waits for them. What is made within them
(by a callback of the service's, say) is followed like everything else.
"""

from __future__ import annotations

from types import CodeType, FunctionType
from typing import Final

CHORES: Final[list[CodeType]] = []
"""The code of coroutines that are chores. Few: a list of two is searched quicker than any set."""


class Chore:
    """Has the tasks of the coroutine function ``owner.name`` left alone until ``undo``.

    Starts at once. Where there is no such function nothing is left alone: it is followed, which is
    right as well. Nor where somebody has put theirs around it, for theirs may be around others too.
    """

    def __init__(self, owner: type, name: str) -> None:
        function = getattr(owner, name, None)
        self._code: CodeType | None = None
        if isinstance(function, FunctionType):
            code = function.__code__
            if code.co_qualname == function.__qualname__:
                self._code = code
                CHORES.append(code)

    def undo(self) -> None:
        """No longer leave them alone, unless somebody else has said so as well."""
        code, self._code = self._code, None
        if code is not None:
            CHORES.remove(code)
