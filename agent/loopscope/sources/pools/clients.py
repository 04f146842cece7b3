"""What the pools of HTTP clients have in common: as they lead anywhere, where to says little.

A pool is called after the line of the service's code that made it, or made the client whose it is:
there are as many names as there are such lines, they are the same after a restart, and nothing of
an address gets out. Clients made for one request each share one name, one after the other. Whatever
was made before we were there (a client in a module, say) is called after the first host that was
asked something through it, since most clients have but one.
"""

from __future__ import annotations

import sys
from typing import Any, ClassVar, Final

from loopscope.sources.pools.adapter import Adapter

_MADE: Final = "loopscope_made"
"""The attribute of a pool that says by what line it was made, or for what host."""

_frame = sys._getframe  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


class ClientAdapter(Adapter):
    """Measures the pools of HTTP clients."""

    library: ClassVar[str]
    """What the names of its pools begin with: users may not know its module at all."""

    def name_of(self, pool: Any) -> str:
        return f"{self.library} {getattr(pool, _MADE, '')}".rstrip()

    def made(self, pool: Any) -> None:
        """``pool`` has just been made, by who calls."""
        try:
            users = self.book.users
            vars(pool)[_MADE] = users.describe_place(users.caller(_frame(1)))
        except Exception as error:
            self._failed(error)

    def leads_to(self, pool: Any, host: str, port: int | None) -> None:
        """Somebody asks ``host``, which is what ``pool`` is called if nobody saw it made."""
        if not hasattr(pool, _MADE):
            vars(pool)[_MADE] = f"{host}:{port}" if port else host
