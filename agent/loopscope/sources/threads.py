"""What requests hand to threads: how long it was queued and how long it ran.

Two doors lead there. anyio's (sync endpoints and dependencies of FastAPI and Starlette, file
responses, uploads) is one class method of its asyncio backend. All others (``asyncio.to_thread``,
``loop.run_in_executor``, uvloop, Motor) go through ``ThreadPoolExecutor.submit``. Both are replaced
on the class, which also reaches executors made and names imported before. A job is a ``Stay`` of
its request: ``thread_wait`` from the call on, be it for a token of a limiter or for a free thread,
``thread_run`` while its function runs, and then over. A job counts as under way whether or not the
request waits for it, as long as the request is. What is handed over outside of requests is passed
on untouched after one look at a context variable.

A job that never runs has to be noticed too. A cancelled future tells; of anyio's jobs the coroutine
that waits for one is all there is, so its going is what tells (which is why it is left as it is,
without one of ours around it). A function that runs on after whoever waited for it was cancelled
is over when it returns.

The waiting coroutine's future is looked up when the function returns: since it waits for nothing
else, what comes then is waiting for the loop. A thread so quick that nobody has begun to wait by
then leaves that open.

In an executor's thread there is no context of the request; its ``CURRENT`` is set around the
function. Tracebacks from the thread have one frame more, which holds on to nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial, wraps
from types import CoroutineType, ModuleType
from typing import Any, TypeVar
from weakref import ref

from loopscope.core.faults import Faults
from loopscope.core.imports import Imports
from loopscope.core.patch import Patch
from loopscope.core.phases import NOWHERE, THREAD_RUN, THREAD_WAIT, Stay
from loopscope.sources.exchange import Exchange
from loopscope.sources.futures import future_of, stand_in
from loopscope.sources.ledger import CURRENT, Claim, current


class _Job:
    """A function on its way through a thread, called there by ``run``."""

    __slots__ = ("_now", "_source", "_stay")

    def __init__(self, source: ThreadsSource, exchange: Exchange, stay: Stay) -> None:
        self._source = source
        self._now = exchange.now
        self._stay = stay
        stay.move(THREAD_WAIT, self._now())

    def run(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """Call ``function``, in whichever thread this is."""
        self.begin()
        try:
            return function(*args, **keywords)
        finally:
            self.end()
            del self, function, args, keywords  # a traceback would keep them, and come full circle

    def begin(self) -> None:
        """The function is about to run."""
        try:
            self._stay.move(THREAD_RUN, self._now())
        except Exception as error:
            self._source.failed(error)

    def end(self) -> None:
        """The function has ended."""
        try:
            ended = self._now()
            try:
                self._stay.awaited = self.find_awaited()
            finally:
                self._stay.move(NOWHERE, ended)
        except Exception as error:
            self._source.failed(error)

    def drop(self, _: object = None) -> None:
        """Whoever waited is gone, or has what there is: what has not begun never will."""
        try:
            if self._stay.phase == THREAD_WAIT:
                self._stay.move(NOWHERE, self._now())
        except Exception as error:
            self._source.failed(error)

    def find_awaited(self) -> object:
        """What the coroutine that waits for the function has yielded; None if nobody does yet."""
        raise NotImplementedError


class _BackendJob(_Job):
    """A job of anyio's."""

    __slots__ = ("_coroutine",)

    def follow(self, coroutine: CoroutineType[Any, Any, Any]) -> None:
        """It is ``coroutine`` that waits for it."""
        try:
            self._coroutine = ref(coroutine, self.drop)
            self._source.awaited.add(self)
        except Exception as error:
            self._source.failed(error)

    def drop(self, _: object = None) -> None:
        self._source.awaited.discard(self)
        super().drop()

    def find_awaited(self) -> object:
        coroutine = self._coroutine()
        return None if coroutine is None else future_of(coroutine.cr_await)


class _ExecutorJob(_Job):
    """A job of an executor's."""

    __slots__ = ("_claim", "_future")

    def __init__(self, source: ThreadsSource, exchange: Exchange, stay: Stay) -> None:
        super().__init__(source, exchange, stay)
        self._claim = Claim(exchange)
        self._future: Callable[[], Future[Any] | None] | None = None

    def follow(self, future: Future[Any]) -> None:
        """It is ``future`` that will be done with it."""
        try:
            self._future = ref(future)  # which refers to us
            future.add_done_callback(self.drop)
        except Exception as error:
            self._source.failed(error)

    def run(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        self.begin()
        token = CURRENT.set(self._claim)
        try:
            return function(*args, **keywords)
        finally:
            CURRENT.reset(token)
            self.end()
            del self, function, args, keywords, token

    def find_awaited(self) -> object:
        future = None if self._future is None else self._future()  # None: submit has not returned
        return None if future is None else stand_in(future)


_AnyJob = TypeVar("_AnyJob", _BackendJob, _ExecutorJob)


class ThreadsSource:
    """Follows what requests hand to threads, from ``start`` to ``stop``."""

    def __init__(self, imports: Imports, faults: Faults) -> None:
        self.awaited: set[object] = set()
        """Jobs of anyio's that somebody waits for: kept, or none would hear of the end of that."""
        self._imports = imports
        self._faults = faults
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
        self.awaited.clear()

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

    def _job(self, kind: type[_AnyJob], exchange: Exchange) -> _AnyJob | None:
        """A job that begins to wait; None where the request keeps no phases."""
        try:
            stay = exchange.stay() if self._is_on else None
            return None if stay is None else kind(self, exchange, stay)
        except Exception as error:
            self.failed(error)
            return None

    def _running_in_worker(self, original: Any) -> Any:
        function = original.__func__

        @wraps(function)
        def run_sync_in_worker_thread(
            cls: Any, func: Any, args: Any, *more: Any, **keywords: Any
        ) -> Any:
            exchange = current()
            job = None if exchange is None else self._job(_BackendJob, exchange)
            if job is None:
                return function(cls, func, args, *more, **keywords)
            try:
                coroutine = function(cls, partial(job.run, func), args, *more, **keywords)
            except BaseException:
                job.drop()
                raise
            job.follow(coroutine)
            return coroutine

        return classmethod(run_sync_in_worker_thread)

    def _submitting(self, original: Any) -> Any:
        @wraps(original)
        def submit(executor: Any, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
            exchange = current()
            if exchange is None or not _runs_here(executor):
                return original(executor, fn, *args, **kwargs)
            job = self._job(_ExecutorJob, exchange)
            if job is None:
                return original(executor, fn, *args, **kwargs)
            try:
                future = original(executor, partial(job.run, fn), *args, **kwargs)
            except BaseException:
                job.drop()
                raise
            job.follow(future)
            return future

        return submit


def _runs_here(executor: object) -> bool:
    """Whether functions run in this interpreter. For others they are pickled: hands off."""
    kind = type(executor)
    return kind is ThreadPoolExecutor or all(
        base.__name__ != "InterpreterPoolExecutor" for base in kind.__mro__
    )
