"""What is handed to process pools: how long it was queued and how long it ran.

It counts for its pool and, as ``thread_wait`` and ``thread_run``, for the request that handed it
over, as with threads (``sources.threads``).

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
from loopscope.sources.futures import stand_in
from loopscope.sources.ledger import current
from loopscope.sources.pools.job import Job, why
from loopscope.sources.pools.meter import Meter
from loopscope.sources.pools.processes import ProcessPools


class _Job(Job):
    """One job, in whichever place of the line."""

    __slots__ = ("found",)

    found: object
    """What whoever waits has yielded."""

    def find_awaited(self) -> object:
        return self.found


class _Line:
    """The unfinished jobs of a pool with so many ``workers``, in order. Any thread."""

    def __init__(self, workers: float, meter: Meter) -> None:
        self.meter = meter
        self._workers = workers
        self._running: dict[Future[Any], _Job] = {}
        self._queued: OrderedDict[Future[Any], _Job] = OrderedDict()
        self._lock = Lock()

    def join(self, future: Future[Any], job: _Job) -> None:
        """The last one, for now."""
        with self._lock:
            if len(self._running) < self._workers:
                self._running[future] = job
                job.begin()
            else:
                self._queued[future] = job

    def leave(self, future: Future[Any]) -> None:
        """Done or cancelled; who had to wait for a worker gets the one that is free now."""
        awaited = stand_in(future)
        with self._lock:
            queued = self._queued.pop(future, None)
            if queued is not None:
                queued.drop(why(future))
                return
            job = self._running.pop(future)
            if self._queued:
                following, its_job = self._queued.popitem(last=False)
                self._running[following] = its_job
                its_job.begin()
            job.found = awaited
            job.end()


class ProcessesSource:
    """Follows what is handed to process pools, from ``start`` to ``stop``."""

    def __init__(self, imports: Imports, faults: Faults, pools: ProcessPools) -> None:
        self._imports = imports
        self._pools = pools
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
                self._follow(executor, fn, future)
            return future

        return submit

    def _follow(self, executor: Any, function: Any, future: Future[Any]) -> None:
        try:
            line = self._lines.get(executor)
            if line is None:
                workers = getattr(executor, "_max_workers", inf)
                line = _Line(workers, self._pools.executor(executor))
                line = self._lines.setdefault(executor, line)
            line.join(future, _Job(line.meter, current(), function))
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
