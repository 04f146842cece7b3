"""All pools, whichever library's: found by themselves once their library is there."""

from __future__ import annotations

from loopscope.core.faults import Faults
from loopscope.core.imports import Imports
from loopscope.sources.pools.adapter import Adapter
from loopscope.sources.pools.asyncpg import AsyncpgAdapter
from loopscope.sources.pools.book import PoolBook

ADAPTERS: tuple[type[Adapter], ...] = (AsyncpgAdapter,)
"""One a library."""


class PoolsSource:
    """Measures the pools of all libraries there is an adapter for, from ``start`` to ``stop``."""

    def __init__(self, book: PoolBook, imports: Imports, faults: Faults) -> None:
        self.book = book
        self._imports = imports
        self._adapters = [adapter(book, faults) for adapter in ADAPTERS]

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
        self.book.refresh()
