"""The pages of a group as somebody reads them who is none of its workers and has no agent.

For a process of its own that serves ``Figures``: it has all that workers have written down, and
asks them for the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from loopscope.agent import families_of
from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.group import Group
from loopscope.core.merge import Family
from loopscope.core.stall import Order
from loopscope.exporters.carried import Carried
from loopscope.exporters.prometheus import MetricsPage

Stalls = Callable[[Order, int], list[dict[str, Any]]]


def _none(order: Order, limit: int) -> list[dict[str, Any]]:
    return []


class Bystander:
    """Reads the pages in ``group`` and folds what the dead have left, as workers do.

    ``amend`` is given the families of all workers, and returns them with what the bystander knows
    besides; ``stalls`` lists what ``/api/stalls`` shows. ``renderer`` runs until ``close``.
    """

    def __init__(
        self,
        group: Group,
        clock: Clock,
        faults: Faults,
        *,
        amend: Callable[[list[Family]], list[Family]] = list,
        stalls: Stalls = _none,
    ) -> None:
        self.clock = clock
        self.renderer = ThreadPoolExecutor(1, thread_name_prefix="loopscope-render")
        self.stalls = stalls
        self._group = group
        self._faults = faults
        self._amend = amend
        self._lock = threading.Lock()
        self._metrics_page = MetricsPage(self._families)

    def render(self, accept: str, carried: Carried) -> tuple[list[bytes], str]:
        """Body, in pieces, and content type of ``/metrics``, with what workers told for it."""
        with self._lock:
            return self._metrics_page.render(accept, carried)

    def snapshot(self) -> list[Family]:
        """All families now."""
        with self._lock:
            return self._families()

    def workers(self) -> list[int]:
        """The workers that are alive."""
        with self._lock:
            return self._group.workers()

    def close(self) -> None:
        """End the thread, as soon as it has made what it is making."""
        self.renderer.shutdown(wait=False, cancel_futures=True)

    def _families(self) -> list[Family]:
        families = families_of([], self._group, self._faults)
        try:
            return self._amend(families)
        except Exception as error:
            self._faults.report("sentinel", error)
            return families
