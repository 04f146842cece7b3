"""Connections without a pool: each made for one use, and closed after it.

They are measured per address, as one pool that is always empty: asking is connecting, giving back
is closing. What a pool connects is measured there and left out here, whichever library it uses:
around its connecting is ``making``.
"""

from __future__ import annotations

from functools import wraps
from inspect import iscoroutinefunction
from typing import Any
from weakref import finalize

from loopscope.core.faults import Faults
from loopscope.sources.pools.adapter import INSIDE_A_POOL, Adapter, Function, making
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.use import Use


class Unpooled(Adapter):
    """Measures connections that no pool has made, of one library.

    What stands in for the library's function connects within ``making``, for what that calls in
    its turn not to be counted once more.
    """

    def __init__(self, book: PoolBook, faults: Faults) -> None:
        super().__init__(book, faults)
        self._ends: dict[int, finalize[..., Any]] = {}
        """By the id of a connection, what is to happen when it is closed, or forgotten."""

    def address_of(self, *arguments: Any, **keywords: Any) -> str:
        """Where somebody leads who connects so: host, port and database. May raise.

        The arguments are all that the function has been called with.
        """
        raise NotImplementedError

    def connecting(self, original: Function) -> Function:
        """What stands in for the function, of either colour, that connects; see ``address_of``."""

        @wraps(original)
        async def connect_async(*arguments: Any, **keywords: Any) -> Any:
            use = self.connects(arguments, keywords)
            if use is None:
                return await original(*arguments, **keywords)
            try:
                with making():
                    connection = await original(*arguments, **keywords)
            except BaseException as error:
                self.failed(use, error)
                raise
            self.connected(use, connection)
            return connection

        @wraps(original)
        def connect(*arguments: Any, **keywords: Any) -> Any:
            use = self.connects(arguments, keywords)
            if use is None:
                return original(*arguments, **keywords)
            try:
                with making():
                    connection = original(*arguments, **keywords)
            except BaseException as error:
                self.failed(use, error)
                raise
            self.connected(use, connection)
            return connection

        return connect_async if iscoroutinefunction(original) else connect

    def disconnecting(self, original: Function) -> Function:
        """What stands in for the function, of either colour, by which a connection ends."""

        @wraps(original)
        async def close_async(connection: Any, *arguments: Any, **keywords: Any) -> Any:
            self.disconnected(connection)
            return await original(connection, *arguments, **keywords)

        @wraps(original)
        def close(connection: Any, *arguments: Any, **keywords: Any) -> Any:
            self.disconnected(connection)
            return original(connection, *arguments, **keywords)

        return close_async if iscoroutinefunction(original) else close

    def connects(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Use | None:
        """Somebody connects; None if that is a pool, or is not measured."""
        if not self._is_on or INSIDE_A_POOL.get():
            return None
        try:
            address = self.address_of(*arguments, **keywords) or self.module
            return self.book.unpooled(address, self.kind).ask(is_phase=False)
        except Exception as error:
            self._failed(error)
            return None

    def connected(self, use: Use, connection: object) -> None:
        """``use`` has got ``connection``, for as long as that is open and somebody has it."""
        try:
            use.got()
            use.meter.opened(use.since - use.asked)
            end = finalize(connection, self._over, id(connection), use)
            end.atexit = False
            self._ends[id(connection)] = end
        except Exception as error:
            self._failed(error)

    def disconnected(self, connection: object) -> None:
        """``connection`` is closed or lost; nothing happens unless it is one of ours."""
        end = self._ends.get(id(connection))
        if end is not None:
            end()

    def _over(self, key: int, use: Use) -> None:
        self._ends.pop(key, None)
        self.safely(use.release)
