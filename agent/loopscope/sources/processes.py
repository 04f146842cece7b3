"""What requests hand to process pools: how long it was queued and how long it ran.

The phases are those of threads (``sources.threads``): ``thread_wait`` and ``thread_run``.

Nothing that is pickled is touched: neither what is sent nor what comes back, so that errors,
their causes and children without loopscope are as ever. What is left to see is when a job is
submitted and when its result is back. ``Future.running()`` is no help, for it is true as soon as
the job is in the pipe, one more than there are workers. But the workers all draw from one queue, in
order; so with ``n`` of them the ``n`` eldest unfinished jobs are the ones that run, and that only
takes counting. It is why all jobs are followed here, not those of requests alone: whoever is
ahead counts.

``thread_run`` includes what is done for a job on the way there and back (pickling, the pipe) and,
where its worker does not exist yet, that process' start. Jobs that were under way when we started
are not known; until they are done, those behind them seem to run too soon.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future
from functools import partial, wraps
from math import inf
from threading import Lock
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from loopscope.core.faults import Faults
from loopscope.core.imports import Imports
from loopscope.core.patch import Patch
from loopscope.core.phases import NOWHERE, THREAD_RUN, THREAD_WAIT, Stay
from loopscope.sources.exchange import Exchange
from loopscope.sources.futures import stand_in
from loopscope.sources.ledger import current


class _Job:
    """One job, in whichever phase the line says."""

    __slots__ = ("_now", "_stay")

    def __init__(self, exchange: Exchange | None) -> None:
        self._stay: Stay | None = None
        if exchange is not None:
            self._stay = exchange.stay()
            self._now = exchange.now

    def move(self, phase: int, awaited: object = None) -> None:
        if self._stay is not None:
            self._stay.awaited = awaited
            self._stay.move(phase, self._now())


class _Line:
    """The unfinished jobs of a pool with so many ``workers``, in order. Any thread."""

    def __init__(self, workers: float) -> None:
        self._workers = workers
        self._running: dict[Future[Any], _Job] = {}
        self._queued: OrderedDict[Future[Any], _Job] = OrderedDict()
        self._lock = Lock()

    def join(self, future: Future[Any], job: _Job) -> None:
        """The last one, for now."""
        with self._lock:
            if len(self._running) < self._workers:
                self._running[future] = job
                job.move(THREAD_RUN)
            else:
                self._queued[future] = job
                job.move(THREAD_WAIT)

    def leave(self, future: Future[Any]) -> None:
        """Done or cancelled; who had to wait for a worker gets the one that is free now."""
        awaited = stand_in(future)
        with self._lock:
            job = self._queued.pop(future, None)
            if job is None:
                job = self._running.pop(future)
                if self._queued:
                    following, its_job = self._queued.popitem(last=False)
                    self._running[following] = its_job
                    its_job.move(THREAD_RUN)
            job.move(NOWHERE, awaited)


class ProcessesSource:
    """Follows what is handed to process pools, from ``start`` to ``stop``."""

    def __init__(self, imports: Imports, faults: Faults) -> None:
        self._imports = imports
        self._faults = faults
        self._lines: WeakKeyDictionary[Any, _Line] = WeakKeyDictionary()
        self._patch: Patch | None = None
        self._is_on = False

    def start(self) -> None:
        """Replace ``ProcessPoolExecutor.submit`` once it is imported; twice is once."""
        if not self._is_on:
            self._is_on = True
            self._imports.when_imported("concurrent.futures.process", self._hook)

    def stop(self) -> None:
        """Put it back. Where somebody has replaced ours, it passes everything on untouched."""
        self._is_on = False
        patch, self._patch = self._patch, None
        if patch is not None:
            patch.undo()

    def _hook(self, module: ModuleType) -> None:
        if self._is_on:
            self._patch = Patch(module.ProcessPoolExecutor, "submit", self._submitting)

    def _submitting(self, original: Any) -> Any:
        @wraps(original)
        def submit(executor: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            future = original(executor, fn, *args, **kwargs)
            if self._is_on:
                self._follow(executor, future)
            return future

        return submit

    def _follow(self, executor: Any, future: Future[Any]) -> None:
        try:
            line = self._lines.get(executor)
            if line is None:
                workers = getattr(executor, "_max_workers", inf)
                line = self._lines.setdefault(executor, _Line(workers))
            line.join(future, _Job(current()))
            future.add_done_callback(partial(self._leave, line))
        except Exception as error:
            self._failed(error)

    def _leave(self, line: _Line, future: Future[Any]) -> None:
        try:
            line.leave(future)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self._faults.report("processes", error)
        if self._faults.is_off("processes"):
            self._is_on = False
