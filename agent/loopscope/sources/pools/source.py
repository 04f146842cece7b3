"""All pools, whichever library's: found by themselves once their library is there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from loopscope.core.faults import Faults
from loopscope.core.imports import Imports
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.aiohttp import AiohttpAdapter
from loopscope.sources.pools.aiomysql import AiomysqlAdapter
from loopscope.sources.pools.asyncpg import AsyncpgAdapter
from loopscope.sources.pools.asyncpg_connect import AsyncpgConnectAdapter
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.descriptors import Descriptors
from loopscope.sources.pools.httpcore import Httpcore2Adapter, HttpcoreAdapter
from loopscope.sources.pools.listener import Listeners
from loopscope.sources.pools.psycopg import PsycopgAdapter
from loopscope.sources.pools.psycopg_connect import PsycopgConnectAdapter
from loopscope.sources.pools.pymongo import PymongoAdapter
from loopscope.sources.pools.redis import RedisAdapter
from loopscope.sources.pools.redis_sync import RedisSyncAdapter
from loopscope.sources.pools.sqlalchemy import SqlalchemyAdapter
from loopscope.sources.pools.uvicorn import UvicornAdapter

ADAPTERS: tuple[type[Adapter], ...] = (
    AiohttpAdapter,
    AiomysqlAdapter,
    AsyncpgAdapter,
    AsyncpgConnectAdapter,
    Httpcore2Adapter,
    HttpcoreAdapter,
    PsycopgAdapter,
    PsycopgConnectAdapter,
    PymongoAdapter,
    RedisAdapter,
    RedisSyncAdapter,
    SqlalchemyAdapter,
    UvicornAdapter,
)
"""One a library's pools, its connections without one, or its synchronous half."""


class Lookout(Protocol):
    """Finds pools that are the kernel's, without a library to be patched."""

    def look(self) -> None:
        """Have the book watch what has come since the last look. At every refresh; may raise."""


class PoolsSource:
    """Measures the pools of all libraries there is an adapter for, from ``start`` to ``stop``.

    ``ours`` are the descriptors of our own listening sockets, which are none of the service's.
    """

    def __init__(
        self, book: PoolBook, imports: Imports, faults: Faults, ours: Callable[[], Iterable[int]]
    ) -> None:
        self.book = book
        self._imports = imports
        self._faults = faults
        self._adapters = [adapter(book, faults) for adapter in ADAPTERS]
        self._lookouts: tuple[Lookout, ...] = (Listeners(book, ours), Descriptors(book))

    def start(self) -> None:
        """Wait for the libraries; import none."""
        for adapter in self._adapters:
            self._imports.when_imported(adapter.module, adapter.arrived)

    def stop(self) -> None:
        """Leave the libraries as they were."""
        for adapter in self._adapters:
            adapter.unpatch()

    def refresh(self) -> None:
        """Publish what pools there are, and what has happened in them."""
        for lookout in self._lookouts:
            self._look(lookout)
        for adapter in self._adapters:
            adapter.tidy_up()
        self.book.refresh()

    def _look(self, lookout: Lookout) -> None:
        part = f"pools.{type(lookout).__name__.lower()}"
        if self._faults.is_off(part):
            return
        try:
            lookout.look()
        except Exception as error:
            self._faults.report(part, error)
