"""What is handed to threads: how long it was queued and how long it ran.

Two doors lead there. anyio's (sync endpoints and dependencies of FastAPI and Starlette, file
responses, uploads) is one class method of its asyncio backend. All others (``asyncio.to_thread``,
``loop.run_in_executor``, uvloop, Motor) go through ``ThreadPoolExecutor.submit``. Both are replaced
on the class, which also reaches executors made and names imported before. A job is a ``Use`` of the
pool it goes through (``sources.pools.threads``) and a ``Stay`` of its request: ``thread_wait`` from
the call on, be it for a token of a limiter or for a free thread, ``thread_run`` while its function
runs, and then over. A job counts as under way whether or not the request waits for it, as long as
the request is. What is handed over outside of requests counts for its pool alone.

A job that never runs has to be noticed too. A cancelled future tells; of anyio's jobs the coroutine
that waits for one is all there is, so its going is what tells (which is why it is left as it is,
without one of ours around it). A function that runs on after whoever waited for it was cancelled
is over when it returns.

The waiting coroutine's future is looked up when the function returns: since it waits for nothing
else, what comes then is waiting for the loop. A thread so quick that nobody has begun to wait by
then leaves that open.

In an executor's thread there is no context of the request; the thread is its helper while the
function runs (``ledger.HELPERS``). Tracebacks from the thread have one frame more, which holds on
to nothing.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import wraps
from threading import get_ident
from types import CoroutineType, ModuleType
from typing import Any
from weakref import ref

from loopscope.core.faults import Faults
from loopscope.core.imports import Imports
from loopscope.core.patch import Patch
from loopscope.sources.futures import future_of, stand_in
from loopscope.sources.ledger import HELPERS, Claim, claim_on, current
from loopscope.sources.pools.job import Job, why
from loopscope.sources.pools.threads import ThreadPools

_DONE = ("FINISHED", "CANCELLED", "CANCELLED_AND_NOTIFIED")
"""The states of an executor's future that calls nobody back any more."""


class _Job(Job):
    """A job that is what the thread calls, in place of its function."""

    __slots__ = ("claim", "source")

    source: ThreadsSource
    claim: Claim | None
    """Whose the thread is meanwhile; None where nothing needs to be done for that."""

    def __call__(self, /, *args: Any, **keywords: Any) -> Any:
        """Call the function, in whichever thread this is."""
        function: Any = self.function
        try:
            self.begin()
        except Exception as error:
            self.source.failed(error)
        claim, before, thread = self.claim, None, 0
        if claim is not None:
            thread = get_ident()
            before = HELPERS.get(thread)
            HELPERS[thread] = claim
        try:
            return function(*args, **keywords)
        finally:
            if before is not None:
                HELPERS[thread] = before
            elif claim is not None:
                HELPERS.pop(thread, None)
            try:
                self.end()
            except Exception as error:
                self.source.failed(error)
            # a traceback would come full circle
            del self, function, args, keywords, claim, thread, before

    def refused(self, error: BaseException) -> None:
        """Nobody will ever call it, for this reason."""
        try:
            self.drop(error)
        except Exception as fault:
            self.source.failed(fault)


class _BackendJob(_Job):
    """A job of anyio's."""

    __slots__ = ("_coroutine",)

    def follow(self, coroutine: CoroutineType[Any, Any, Any]) -> None:
        """It is ``coroutine`` that waits for it; when that goes, its meter still has us."""
        try:
            self._coroutine = ref(coroutine, self._left)
        except Exception as error:
            self.source.failed(error)

    def find_awaited(self) -> object:
        coroutine = self._coroutine()
        return None if coroutine is None else future_of(coroutine.cr_await)

    def _left(self, _: object) -> None:
        if self.is_waiting:
            self.refused(CancelledError())


class _ExecutorJob(_Job):
    """A job of an executor's."""

    __slots__ = ("_future",)

    _future: Callable[[], Future[Any] | None]

    def follow(self, future: Future[Any]) -> None:
        """It is ``future`` that will be done with it."""
        try:
            self._future = ref(future)  # which refers to us
            # As ``add_done_callback`` does, without its lock: who could have it? Nobody has seen
            # the future but the executor, which may have been shut down meanwhile, or have failed
            # to begin a thread. Else who is done has begun, and ``_done`` does nothing.
            future._done_callbacks.append(self._done)  # type: ignore[attr-defined]  # noqa: SLF001
            if future._state in _DONE:  # noqa: SLF001
                self._done(future)
        except Exception as error:
            self.source.failed(error)

    def had_thread_started(self) -> None:
        """For want of a free one, and the caller has waited for that."""
        try:
            self.meter.opened(self.meter.now() - self.asked)
        except Exception as error:
            self.source.failed(error)

    def find_awaited(self) -> object:
        future = getattr(self, "_future", _nobody)()  # none before submit has returned
        return None if future is None else stand_in(future)

    def _done(self, future: Future[Any]) -> None:
        if self.is_waiting:
            self.refused(why(future))


def _nobody() -> None:
    return None


class ThreadsSource:
    """Follows what is handed to threads, from ``start`` to ``stop``."""

    def __init__(self, imports: Imports, faults: Faults, pools: ThreadPools) -> None:
        self._imports = imports
        self._faults = faults
        self._pools = pools
        self._patches: list[Patch] = []
        self._is_on = False

    def start(self) -> None:
        """Replace the methods through which functions get to threads; twice is once."""
        if not self._is_on:
            self._is_on = True
            self._patches.append(Patch(ThreadPoolExecutor, "submit", self._submitting))
            self._imports.when_imported("anyio._backends._asyncio", self._patch_anyio)

    def stop(self) -> None:
        """Put them back. Where somebody has replaced ours, it passes everything on untouched."""
        self._is_on = False
        for patch in self._patches:
            patch.undo()
        self._patches.clear()

    def failed(self, error: Exception) -> None:
        """Report ``error``; too many of them, and no job is followed any more."""
        self._faults.report("threads", error)
        if self._faults.is_off("threads"):
            self._is_on = False

    def _patch_anyio(self, module: ModuleType) -> None:
        backend = getattr(module, "AsyncIOBackend", None)  # since anyio 4
        if self._is_on and isinstance(backend, type):
            name = "run_sync_in_worker_thread"
            self._patches.append(Patch(backend, name, self._running_in_worker))

    def _backend_job(
        self, backend: Any, function: Any, more: tuple[Any, ...], keywords: dict[str, Any]
    ) -> _BackendJob | None:
        """A job that begins to wait for a token; None where it is not followed."""
        if not self._is_on:
            return None
        try:
            limiter = more[1] if len(more) > 1 else keywords.get("limiter")
            pools = self._pools
            meter = pools.default_limiter(backend) if limiter is None else pools.limiter(limiter)
            job = _BackendJob(meter, current(), function)
            job.source = self
            job.claim = None
            return job
        except Exception as error:
            self.failed(error)
            return None

    def _executor_job(self, executor: Any, function: Any) -> _ExecutorJob | None:
        """A job that begins to wait for a thread; None where it is not followed."""
        if not self._is_on:
            return None
        try:
            meter = self._pools.executor(executor)
            if meter is None:
                return None
            exchange = current()
            job = _ExecutorJob(meter, exchange, function)
            job.source = self
            job.claim = None if exchange is None else claim_on(exchange)
            return job
        except Exception as error:
            self.failed(error)
            return None

    def _running_in_worker(self, original: Any) -> Any:
        function = original.__func__

        @wraps(function)
        def run_sync_in_worker_thread(
            cls: Any, func: Any, args: Any, *more: Any, **keywords: Any
        ) -> Any:
            job = self._backend_job(cls, func, more, keywords)
            if job is None:
                return function(cls, func, args, *more, **keywords)
            try:
                coroutine = function(cls, job, args, *more, **keywords)
            except BaseException as error:
                job.refused(error)
                raise
            job.follow(coroutine)
            return coroutine

        return classmethod(run_sync_in_worker_thread)

    def _submitting(self, original: Any) -> Any:
        @wraps(original)
        def submit(executor: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            job = self._executor_job(executor, fn)
            if job is None:
                return original(executor, fn, *args, **kwargs)
            threads = getattr(executor, "_threads", ())
            before = len(threads)
            try:
                future = original(executor, job, *args, **kwargs)
            except BaseException as error:
                job.refused(error)
                raise
            if len(threads) > before:
                job.had_thread_started()
            job.follow(future)
            return future

        return submit
