"""The garbage collector: how often it runs, what it finds, and how long everything stands still.

The hook takes no lock, logs nothing and builds nothing: a collection can start at any allocation,
also inside somebody's lock. Its slots have one writer although every thread collects, because a
collection holds the GIL and never nests.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable

from loopscope.core.histogram import Number
from loopscope.core.metric import STEP_BOUNDS, Metric
from loopscope.core.page import Page

_GENERATION = ("cpython_gc_generation",)

COLLECTIONS = Metric(
    "cpython_gc_collections_total", "counter", "Collections, by generation.", _GENERATION
)
COLLECTED = Metric(
    "cpython_gc_collected_objects_total", "counter", "Objects freed by collections.", _GENERATION
)
UNCOLLECTABLE = Metric(
    "cpython_gc_uncollectable_objects_total",
    "counter",
    "Objects found unreachable that could not be freed.",
    _GENERATION,
)
PAUSE = Metric(
    "loopscope_gc_pause_seconds",
    "histogram",
    "How long each collection stopped the process, by generation.",
    _GENERATION,
    unit="seconds",
    bounds=STEP_BOUNDS,
)

METRICS = (COLLECTIONS, COLLECTED, UNCOLLECTABLE, PAUSE)

_SUM = len(STEP_BOUNDS) + 1
_STATISTICS = (
    (COLLECTIONS, "collections"),
    (COLLECTED, "collected"),
    (UNCOLLECTABLE, "uncollectable"),
)


class GcSource:
    """Times collections by a hook in ``gc.callbacks``; ``refresh`` copies its counts."""

    def __init__(self, page: Page, now: Callable[[], float]) -> None:
        self._slots = page.slots
        self._now = now
        self._began = 0.0
        generations = [(str(number),) for number in range(len(gc.get_stats()))]
        self._pauses = [page.allocate(PAUSE, labels) for labels in generations]
        self._counts = [
            {key: Number(page.slots, page.allocate(metric, labels)) for metric, key in _STATISTICS}
            for labels in generations
        ]
        self._hook = self._on_collection  # one bound method, so that it can be found again

    def start(self) -> None:
        """Hook in; twice is once."""
        if self._hook not in gc.callbacks:
            gc.callbacks.append(self._hook)

    def stop(self) -> None:
        """Take out our hook and no other."""
        if self._hook in gc.callbacks:
            gc.callbacks.remove(self._hook)

    def refresh(self) -> None:
        for counts, statistics in zip(self._counts, gc.get_stats(), strict=True):
            for key, number in counts.items():
                number.set(statistics[key])

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = self._now()
        elif self._began:
            pause = self._now() - self._began
            base = self._pauses[info["generation"]]
            slots = self._slots
            slots[base + bisect_left(STEP_BOUNDS, pause)] += 1.0
            slots[base + _SUM] += pause
            self._began = 0.0
