"""The garbage collector: how often it runs, what it finds, and how long everything stands still.

A collection can start at any allocation, also while the very thread holds somebody's lock. So the
hook takes no lock, logs nothing and starts no collection: it reads the clock, adds to slots that
were there before and, for a long pause, appends three numbers to a deque. Metric objects with
locks, used in such a hook, have deadlocked services.

Its slots have one writer although any thread may collect. CPython raises a flag (``collecting``, in
gcmodule.c) before it calls the hooks with "start" and lowers it after "stop"; while the flag is up
no other collection begins, in any thread, even where a finalizer or the hook lets go of the GIL.
So starts and stops alternate, and the GIL hands what one thread wrote to the next.

What goes wrong in the hook can be told to nobody there. It is kept, and the next ``refresh``, which
runs where raising is safe, raises it.
"""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from threading import get_ident

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

NOTABLE = 0.002
"""Seconds from which a pause is remembered by itself."""

_SUM = len(STEP_BOUNDS) + 1
_STATISTICS = (
    (COLLECTIONS, "collections"),
    (COLLECTED, "collected"),
    (UNCOLLECTABLE, "uncollectable"),
)


class GcSource:
    """Times collections by a hook in ``gc.callbacks``; ``refresh`` copies the collector's counts.

    ``now`` reads monotonic seconds; it is called in the hook, so it must be as harmless.
    """

    def __init__(self, page: Page, now: Callable[[], float]) -> None:
        self._slots = page.slots
        self._now = now
        self._began = 0.0
        self._failure: Exception | None = None
        generations = [(str(number),) for number in range(len(gc.get_stats()))]
        self._pauses = [page.allocate(PAUSE, labels) for labels in generations]
        self._counts = [
            {key: Number(page.slots, page.allocate(metric, labels)) for metric, key in _STATISTICS}
            for labels in generations
        ]
        self.pauses: deque[tuple[float, float, int]] = deque(maxlen=64)
        """The latest pauses of ``NOTABLE`` seconds or more: from, until, and in which thread."""
        self._hook = self._on_collection  # one bound method, so that it can be found again

    def start(self) -> None:
        """Hook in; twice is once."""
        if self._hook not in gc.callbacks:
            self._began = 0.0  # a start from before the last stop() has lost its end
            gc.callbacks.append(self._hook)

    def stop(self) -> None:
        """Take out our hook and no other."""
        if self._hook in gc.callbacks:
            gc.callbacks.remove(self._hook)

    def refresh(self) -> None:
        """Copy the counts. Raises what has failed in the hook since last time, once."""
        for counts, statistics in zip(self._counts, gc.get_stats(), strict=True):
            for key, number in counts.items():
                number.set(statistics[key])
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _on_collection(self, phase: str, info: dict[str, int]) -> None:
        try:
            if phase == "start":
                self._began = self._now()
            elif self._began:  # else it was under way when we hooked in
                ended = self._now()
                pause = ended - self._began
                self._began = 0.0
                base = self._pauses[info["generation"]]
                self._slots[base + bisect_left(STEP_BOUNDS, pause)] += 1.0
                self._slots[base + _SUM] += pause
                if pause >= NOTABLE:
                    self.pauses.append((ended - pause, ended, get_ident()))
        except Exception as error:
            self._failure = error
