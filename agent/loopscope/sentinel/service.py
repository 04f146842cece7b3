"""The sentinel: what watches the workers of a group, and serves what all of them know.

The watch goes round in the thread that calls it; figures are served by the same listener, and made
of the same pages, as they would be by a worker (``admin``).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from loopscope.admin.bystander import Bystander
from loopscope.admin.figures import Figures
from loopscope.admin.listener import AdminListener
from loopscope.admin.siblings import PATIENCE, Siblings
from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.group import Group
from loopscope.core.merge import Family
from loopscope.core.metric import Metric
from loopscope.core.notes import SUFFIX as NOTES
from loopscope.core.notes import Notes
from loopscope.core.stacks import UserCode
from loopscope.core.stall import Order, in_order, joined, told
from loopscope.sentinel.watch import LISTING, TICK, Watch
from loopscope.settings import Settings
from loopscope.sources.exits import Exits
from loopscope.sources.hangs import LOOKS, SENTINEL_CPU, SENTINEL_MEMORY
from loopscope.sources.outside import WorkersView
from loopscope.sources.stalls import IN_PROGRESS, STALL_SECONDS, STALLS

Shown = dict[str, Any]


class Sentinel:
    """Watches over the workers that share ``directory``. Raises ``OSError``."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._clock = Clock()
        self._faults = Faults()
        self._group = Group(directory, self._clock, own=_nobody)
        self._notes = Notes(directory / f"sentinel-{os.getpid()}-{time.time_ns()}{NOTES}")
        self._process = psutil.Process()
        self._exits = Exits()
        self._outside = WorkersView(self._clock.now)
        self.watch = Watch(
            Group(directory, self._clock, own=_nobody),  # each is for one thread
            self._clock,
            UserCode(settings.code_roots),
            threshold=settings.stall_threshold,
            note=self._note,
            on_workers=self._exits.follow,
        )
        self._pages = Bystander(
            self._group, self._clock, self._faults, amend=self._amend, stalls=self._stalls
        )
        siblings = Siblings(self._group, self._faults, hang=self._hanging)
        self._listener = AdminListener(
            settings,
            self._faults,
            Figures(self._pages, siblings=siblings),
            group=self._group,
        )

    def round(self) -> float:
        """Watch once; the seconds until that should be done again.

        Where that fails again and again, nobody is looked into any more; figures are served all the
        same. Raises ``OSError`` where it cannot even be seen who is alive.
        """
        if self._faults.is_off("watch"):
            self.watch.look_around()
            return LISTING
        try:
            return self.watch.round()
        except Exception as error:
            self._faults.report("watch", error)
            return TICK

    def start(self) -> None:
        """Serve."""
        self._listener.start()

    def stop(self) -> None:
        """Serve and watch no more."""
        self._listener.stop()
        self._pages.close()
        self.watch.close()
        self._exits.close()
        self._notes.close()

    def _hanging(self) -> list[str]:
        """Workers that have been held for so long that nobody waits for their answer."""
        return [worker for worker, held in self.watch.held().items() if held >= PATIENCE]

    def _note(self, stall: Mapping[str, Any]) -> None:
        """Keep what was seen for the next reader, should this process be killed as well."""
        self._notes.write_or_report(stall, self._faults)

    def _stalls(self, order: Order, limit: int) -> list[Shown]:
        """Stalls of all workers, those that they cannot tell of themselves included."""
        now = self._clock.wall(self._clock.now())
        stalls = self.watch.stalls()
        for notes, alive in self._group.notes(besides=self._notes.path):
            stalls += told(notes, alive=alive, now=now)
        return in_order(joined(stalls), order, limit)

    def _amend(self, families: list[Family]) -> list[Family]:
        """``families`` of all workers with what is known here alone."""
        known = {family.metric.name: family for family in families}
        for worker, seconds in self.watch.held().items():
            progress = known.get(IN_PROGRESS.name)
            if progress is not None and (worker,) in progress.rows:
                progress.put((worker,), [seconds])
        for place, (count, seconds) in list(self.watch.cut_short.items()):
            _add(known, STALLS, place, count)
            _add(known, STALL_SECONDS, place, seconds)
        for outcome, count in list(self.watch.looks.items()):
            _add(known, LOOKS, (outcome,), float(count))
        with self._process.oneshot():
            spent = self._process.cpu_times()
            _add(known, SENTINEL_MEMORY, (), float(self._process.memory_info().rss))
            _add(known, SENTINEL_CPU, (), spent.user + spent.system)
        workers = self._outside.families(self.watch.pids)
        return [*known.values(), *workers, *self._exits.families()]


def _nobody() -> None:
    """The page of a worker that is none."""


def _add(
    families: dict[str, Family], metric: Metric, labels: tuple[str, ...], value: float
) -> None:
    """Add ``value`` to a counter, or make it a gauge's, among ``families`` by name."""
    family = families.setdefault(metric.name, Family(metric, metric.labels))
    before = family.values(family.rows[labels])[0] if labels in family.rows else 0.0
    family.put(labels, [before + value])
