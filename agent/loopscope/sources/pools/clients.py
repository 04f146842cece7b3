"""What the pools of HTTP clients have in common: as they lead anywhere, where to says little.

A pool is called after the line of the service's code that made it, or made the client whose it is:
there are as many names as there are such lines, they are the same after a restart, and nothing of
an address gets out. Clients made for one request each share one name, one after the other. Whatever
was made before we were there (a client in a module, say) is called after the first host that was
asked something through it, since most clients have but one.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any, ClassVar, Final

from loopscope.sources.pools.adapter import METER, Adapter, Function
from loopscope.sources.pools.use import Use

_MADE: Final = "loopscope_made"
"""The attribute of a pool that says by what line it was made, or for what host."""

_USE: Final = "loopscope_use"
"""The attribute of a request that is its use of the pool."""

_frame = sys._getframe  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class ClientAdapter(Adapter):
    """Measures the pools of HTTP clients."""

    library: ClassVar[str]
    """What the names of its pools begin with: users may not know its module at all."""

    def name_of(self, pool: Any) -> str:
        return f"{self.library} {getattr(pool, _MADE, '')}".rstrip()

    def origin_of(self, request: Any) -> tuple[str, int | None]:
        """Host and port that ``request`` is for."""
        raise NotImplementedError

    def constructing(self, original: Function) -> Function:
        """What stands in for a pool's ``__init__``: it is called after the line that makes it."""

        @wraps(original)
        def __init__(pool: Any, *arguments: Any, **keywords: Any) -> None:  # noqa: N807
            original(pool, *arguments, **keywords)
            self._made(pool)

        return __init__

    def asked(self, pool: Any, request: Any) -> Use | None:
        """``request`` is about to join the queue, and carries what becomes of it."""
        try:
            if METER not in vars(pool):
                self._leads_to(pool, *self.origin_of(request))
            use = self.ask(pool)
            if use is not None:
                vars(request)[_USE] = use
        except Exception as error:
            self._failed(error)
            return None
        return use

    def started(self, request: Any) -> None:
        """A connection, or the place for one, is ``request``'s own: it no longer waits."""
        try:
            use = use_of(request)
            if use is not None and use.is_waiting:
                use.got()
        except Exception as error:
            self._failed(error)

    def _made(self, pool: Any) -> None:
        try:
            users = self.book.users
            vars(pool)[_MADE] = users.describe_place(users.caller(_frame(1)))
        except Exception as error:
            self._failed(error)

    def _leads_to(self, pool: Any, host: str, port: int | None) -> None:
        """Somebody asks ``host``, which is what ``pool`` is called if nobody saw it made."""
        if not hasattr(pool, _MADE):
            vars(pool)[_MADE] = f"{host}:{port}" if port else host


def use_of(request: Any) -> Use | None:
    """What has become of ``request`` in its pool; None where that is not measured."""
    use: Use | None = getattr(request, _USE, None)
    return use
