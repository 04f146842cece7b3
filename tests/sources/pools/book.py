"""A book of pools on a clock that stands still, and what it has published."""

from __future__ import annotations

from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.page import Page, PageReader
from loopscope.core.stacks import UserCode
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.source import Lookout


class Published:
    """What ``lookouts`` find, refreshed as an agent does it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lookouts: list[Lookout] = []
        self._page = Page.anonymous(Clock(), capacity=1 << 18)
        self.book = PoolBook(
            self._page,
            lambda: self.now,
            UserCode(),
            Faults(),
            leak_after=60.0,
            on_leak=lambda leak: None,
        )

    def refresh(self, later: float = 0.0) -> None:
        """Look and read once, ``later`` seconds after the last time."""
        self.now += later
        for lookout in self.lookouts:
            lookout.look()
        self.book.refresh()

    def pool(self, name: str) -> dict[str, float]:
        """The pool's figures, as far as there are any: ``capacity``, ``in_use`` and so on."""
        reader = PageReader()
        reader.update(self._page.view)
        return {
            series.metric.name.removeprefix("loopscope_pool_"): self._page.slots[series.runs[0][0]]
            for series in reader.series
            if series.labels[0] == name
        }

    def pools(self) -> set[str]:
        """The names of all pools there have been."""
        reader = PageReader()
        reader.update(self._page.view)
        return {series.labels[0] for series in reader.series}
