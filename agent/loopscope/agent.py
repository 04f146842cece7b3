"""The agent: the one place that knows every part. It wires; it does no work of its own.

There is one agent a process, started lazily by the first middleware that has something to measure
and shared by all others. Each thread that runs an event loop gets recorders of its own, so that
every slot has one writer; the recorders of a thread that is gone are handed to the next new one.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import platform
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from typing import Any, Protocol

import psutil
from prometheus_client import REGISTRY

from loopscope._version import __version__
from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.group import Group, make_safe, remove_if_deserted
from loopscope.core.imports import Imports
from loopscope.core.merge import Family, ReadPage, merge
from loopscope.core.notes import SUFFIX as NOTES
from loopscope.core.notes import Notes
from loopscope.core.pace import Pace
from loopscope.core.page import Page, PageFullError, PageReader
from loopscope.core.routes import RouteResolver
from loopscope.core.stacks import UserCode
from loopscope.core.stall import Order, Stall, as_json, in_order, joined, told
from loopscope.exporters.carried import NOTHING, Carried, Exemplars
from loopscope.exporters.leak_log import LeakLog
from loopscope.exporters.log import StallLog
from loopscope.exporters.profile import BlockingProfile
from loopscope.exporters.prometheus import MetricsPage
from loopscope.exporters.traces import TraceExporter, make_tracer, provided_tracer
from loopscope.settings import Settings
from loopscope.sources.awaits import AwaitsSource, AwaitTable
from loopscope.sources.cgroup import CgroupSource
from loopscope.sources.closing import when_closed
from loopscope.sources.endpoints import EndpointsSource
from loopscope.sources.factory import FactorySource
from loopscope.sources.gc import GcSource
from loopscope.sources.in_flight import InFlightSource
from loopscope.sources.itself import SelfSource
from loopscope.sources.ledger import SERVERS
from loopscope.sources.loop import LoopMonitor
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.processes import ProcessPools
from loopscope.sources.pools.semconv import db_client
from loopscope.sources.pools.source import PoolsSource
from loopscope.sources.pools.threads import ThreadPools
from loopscope.sources.pools.watched import WatchedSource
from loopscope.sources.process import ProcessSource
from loopscope.sources.processes import ProcessesSource
from loopscope.sources.request_start import seconds_queued
from loopscope.sources.requests import (
    DURATION,
    HttpExchange,
    RequestRecorder,
    Tracer,
    method_label,
)
from loopscope.sources.stalls import StallBook
from loopscope.sources.suspicion import Running, Waiting
from loopscope.sources.tasks import TasksSource
from loopscope.sources.threads import ThreadsSource
from loopscope.sources.watchdog import Watchdog
from loopscope.sources.websockets import WebSocketExchange, WebSocketRecorder
from loopscope.sources.workers import home_of_group, home_of_one, left_behind

logger = logging.getLogger("loopscope")


_SHARE = 0.01
"""Of one core, for writing down what only other processes read."""


class Front(Protocol):
    """What serves the agent's figures to the outside: started and stopped with it."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def abandon(self) -> None:
        """Let go of everything inherited through a fork, without touching the parent's."""

    def filenos(self) -> Iterable[int]:
        """The descriptors it listens on."""
        ...


class Recorders:
    """What one event loop's thread writes to. ``thread`` is 0 once they are out of use.

    To the watchdog it is a loop and what runs on it (``sources.watchdog.Watched``).
    """

    def __init__(
        self,
        requests: RequestRecorder,
        websockets: WebSocketRecorder,
        monitor: LoopMonitor,
        *,
        is_watched: bool,
    ) -> None:
        self.requests = requests
        self.websockets = websockets
        self.monitor = monitor
        self.is_watched = is_watched
        self.loop: Callable[[], object] = lambda: None
        self._leave_loop: Callable[[], None] = lambda: None
        requests.switch_off = self.retire
        requests.loop = monitor

    @property
    def thread(self) -> int:
        return self.requests.thread

    def retire(self) -> None:
        """Take these recorders out of use: whoever holds them has to ask for new ones."""
        self._leave_loop()
        self._leave_loop = lambda: None
        if SERVERS.get(self.requests.thread) is self.requests:
            del SERVERS[self.requests.thread]
        self.requests.latest = None
        self.requests.thread = 0
        self.monitor.detach()

    def abandon(self) -> None:
        """In a forked child: write no more into what is the parent's."""
        self.monitor.abandon()
        self.retire()
        self.requests.abandon()
        self.websockets.abandon()

    def trace_with(self, tracer: TraceExporter) -> None:
        """Have spans of what is to come made by ``tracer``."""
        self.requests.trace_with(tracer)
        self.websockets.tracer = tracer

    def bind(self) -> None:
        """Make the calling thread and its running loop the owner, until that is closed."""
        self._leave_loop()
        loop = asyncio.get_running_loop()
        self.loop = weakref.ref(loop)
        self._leave_loop = when_closed(loop, self._retire_quietly)
        self.requests.thread = get_ident()
        SERVERS[self.requests.thread] = self.requests
        if self.is_watched:
            self.monitor.attach()

    def _retire_quietly(self) -> None:
        try:
            self.retire()
        except Exception as error:
            self.requests.faults.report("requests", error)

    def running(self) -> Running | None:
        """The request, else the task, whose step the loop is running. From any thread."""
        live: list[HttpExchange | WebSocketExchange] = [
            *list(self.requests.active),
            *list(self.websockets.active),
        ]
        inside = [each for each in live if each.step_started > each.suspended]
        if inside:
            return _running(max(inside, key=lambda each: each.step_started), self.requests.tracer)
        loop = self.monitor.loop
        task = None if loop is None else asyncio.current_task(loop)
        return None if task is None else Running(id(task), 0.0, task=_task_name(task))

    def waiting(self) -> list[HttpExchange]:
        """The requests in flight that are not being run. From any thread."""
        return [each for each in list(self.requests.active) if each.step_started <= each.suspended]

    def label_of(self, waiting: Waiting) -> tuple[str, str]:
        """Route template, as far as it has been routed, and method of a request in flight."""
        assert isinstance(waiting, HttpExchange)
        return waiting.route_so_far(), method_label(waiting.scope)


class Agent:
    """Everything loopscope runs in one process."""

    def __init__(self, settings: Settings, front: Callable[[Agent], Front]) -> None:
        self.settings = settings
        self.clock = Clock()
        self.faults = Faults()
        self.group: Group | None = None
        """The workers it shares its figures with, if there may be any."""
        self._left_behind: Iterator[Path] = iter(())
        """Directories of other groups that may be deserted."""
        self.page = self._make_page()
        self._notes = None if self.page.path is None else Notes(self.page.path.with_suffix(NOTES))
        self.tracer = self._make_tracer()
        self._own_tracer = self.tracer
        """What we set up ourselves stays to be shut down when the service's takes its place."""
        self._recorders: list[Recorders] = []
        self._applications = 0
        self._resolvers: list[RouteResolver] = []
        """Of applications whose routes are told to those who see only stacks."""
        self._lock = threading.Lock()  # attaching, refreshing and rendering; never per request
        self._own_reader = PageReader()
        self._pace = Pace(_SHARE)
        self.itself = SelfSource(
            self.page,
            overhead=self._overhead,
            errors=lambda: self.faults.counts,
            folded=lambda: (
                sum(r.requests.folded + r.websockets.folded for r in self._recorders)
                + self.tasks.folded
                + self.awaits.folded
                + self._pool_book.lost
            ),
            series=lambda: self.page.series_count,
        )
        self.users = UserCode(settings.code_roots)
        self.awaits = AwaitsSource(self.page, self._await_tables, self.users)
        self.gc = GcSource(self.page, self.clock.now)
        self.book = StallBook(self.page)
        self.profile = BlockingProfile()
        self._stall_log = StallLog(self.clock.now)
        self._leak_log = LeakLog(self.clock.now)
        self._pool_book = PoolBook(
            self.page,
            self.clock.now,
            self.users,
            self.faults,
            leak_after=settings.leak_after,
            on_leak=self._leak_log.write,
        )
        self.watchdog = Watchdog(
            self._watched,
            self.clock,
            settings.stall_threshold,
            book=self.book,
            user_code=self.users,
            pauses=lambda: list(self.gc.pauses),
            on_stall=self._on_stall,
            on_hold=self._note,
            faults=self.faults,
            errand=self._errand,
            worker=str(os.getpid()),
        )
        self.tasks = TasksSource(self.page, _give_way)
        self.factories = FactorySource(self.page)
        self._endpoints = EndpointsSource(self.page, lambda: list(self._resolvers))
        self.imports = Imports(self.faults)
        thread_pools = ThreadPools(self._pool_book)
        self.threads = ThreadsSource(self.imports, self.faults, thread_pools)
        process_pools = ProcessPools(self._pool_book)
        self.processes = ProcessesSource(self.imports, self.faults, process_pools)
        self.pools = PoolsSource(
            self._pool_book, self.imports, self.faults, lambda: self._front.filenos()
        )
        self.watched = WatchedSource(self._pool_book, thread_pools, self.faults)
        self._refreshed = (
            self.awaits,
            self.pools,
            InFlightSource(self.page, self.live_requests, self.live_sessions),
            ProcessSource(self.page),
            CgroupSource(self.page),
            self.gc,
            self.tasks,
            self.factories,
            self.itself,
            self.watchdog,
        )
        self._metrics_page = MetricsPage(
            self.families,
            exemplars=self.exemplars,
            user_registry=REGISTRY if settings.user_metrics else None,
        )
        self.renderer = ThreadPoolExecutor(1, thread_name_prefix="loopscope-render")
        """Where whoever serves figures has them made."""
        self._front = front(self)

    def start(self) -> None:
        """Hook in and open the front. Never raises: what fails is logged and left out."""
        parts = {
            "gc": self.gc.start,
            "tasks": self.tasks.start,
            "threads": self.threads.start,
            "processes": self.processes.start,
            "pools": self.pools.start,
            "watched": self.watched.start,
            "admin": self._front.start,
        }
        if self.settings.stalls or self.group is not None:  # for its errand, if for nothing else
            parts["stalls"] = self.watchdog.start
        self._take_steps(parts.items())

    def stop(self) -> None:
        """Undo everything: hooks, threads, sockets. Requests under way still end in peace.

        Never raises either: this is the end of somebody's lifespan. What fails keeps nothing else
        from being undone.
        """
        tracer, notes = self._own_tracer, self._notes
        self._take_steps(
            [
                *(("requests", recorders.retire) for recorders in self._recorders),
                ("stalls", self.watchdog.stop),
                ("admin", self._front.stop),
                ("admin", lambda: self.renderer.shutdown(wait=False, cancel_futures=True)),
                *self._hooks(),
                *([] if tracer is None else [("traces", tracer.stop)]),
                *([] if notes is None else [("workers", notes.close)]),
                ("page", self.page.close),
            ]
        )

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's, so that a new agent can start.

        First of its locks: were they kept, the parent would look alive for as long as the child is.
        """
        group, notes = self.group, self._notes
        self._take_steps(
            [
                ("page", self.page.abandon),
                *([] if notes is None else [("workers", notes.abandon)]),
                *([] if group is None else [("workers", group.abandon)]),
                *self._hooks(),
                *(("requests", recorders.abandon) for recorders in self._recorders),
                ("stalls", self.watchdog.abandon),
                ("admin", self._front.abandon),
            ]
        )

    def _hooks(self) -> list[tuple[str, Callable[[], None]]]:
        """What takes out what is in the interpreter and in libraries. Fit for a forked child."""
        return [
            ("imports", self.imports.stop),
            ("gc", self.gc.stop),
            ("tasks", self.tasks.stop),
            ("tasks", self.factories.stop),
            ("threads", self.threads.stop),
            ("processes", self.processes.stop),
            ("pools", self.pools.stop),
            ("watched", self.watched.stop),
        ]

    def _take_steps(self, steps: Iterable[tuple[str, Callable[[], None]]]) -> None:
        """Take all of them, whichever fail: those are reported, each as a failure of its part."""
        for part, step in steps:
            try:
                step()
            except Exception as error:
                self.faults.report(part, error)

    def enter(self) -> None:
        """An application has started up."""
        with self._lock:
            self._applications += 1
            self._look_for_provider()

    def leave(self) -> None:
        """An application has shut down; the last one stops the agent."""
        with self._lock:
            self._applications -= 1
            last = self._applications == 0
        if last:
            _retire(self)

    def recorders(self) -> Recorders | None:
        """The calling thread's recorders, for the event loop that runs in it.

        None once recording has failed too often and is switched off.
        """
        if self.faults.is_off("requests"):
            return None
        with self._lock:
            self._look_for_provider()
            self.tasks.watch(asyncio.get_running_loop())
            self.factories.watch(asyncio.get_running_loop())
            mine = get_ident()
            for recorders in self._recorders:
                if recorders.thread == mine:
                    recorders.bind()
                    return recorders
            found = next(filter(_is_free, self._recorders), None) or self._new_recorders()
            found.bind()
            loop = asyncio.get_running_loop()
            self.itself.describe(__version__, platform.python_version(), _loop_name(loop))
            return found

    def _new_recorders(self) -> Recorders:
        settings = self.settings
        recorders = Recorders(
            RequestRecorder(
                self.page,
                self.clock.now,
                self.faults,
                AwaitTable(
                    self.clock.now,
                    self.users,
                    threshold=settings.await_threshold,
                    sequential=settings.sequential_threshold,
                ),
                max_series=settings.max_series,
                stream_types=settings.stream_content_types,
                queue_from=seconds_queued if settings.request_start else None,
                tracer=self.tracer,
            ),
            WebSocketRecorder(
                self.page,
                self.clock.now,
                self.faults,
                max_series=settings.max_series,
                tracer=self.tracer,
            ),
            LoopMonitor(
                self.page,
                self.clock.now,
                settings.stall_threshold,
                seen_from_outside=settings.sentinel,
            ),
            is_watched=settings.stalls,
        )
        self._recorders.append(recorders)
        return recorders

    def _await_tables(self) -> list[AwaitTable]:
        return [recorders.requests.awaits for recorders in self._recorders]

    def _overhead(self) -> dict[str, float]:
        return {
            "requests": sum(r.requests.overhead for r in self._recorders),
            "awaits": sum(table.spent for table in self._await_tables()),
            "watchdog": self.watchdog.spent,
        }

    def _watched(self) -> list[Recorders]:
        return [recorders for recorders in self._recorders if recorders.is_watched]

    def _note(self, stall: Stall) -> None:
        """Leave word of ``stall`` to the other workers, whatever becomes of this one."""
        if self._notes is not None:
            self._notes.write_or_report(as_json(stall), self.faults)

    def _on_stall(self, stall: Stall) -> None:
        self._note(stall)
        root = stall.route or stall.task or "(no task)"
        for frames, seconds in stall.stacks:
            self.profile.add(frames, seconds, root)
        self._stall_log.write(stall)

    def stalls(self, order: Order = "newest", limit: int = 100) -> list[dict[str, Any]]:
        """Stalls of all workers as ``/api/stalls`` lists them. Not for an event loop's thread."""
        stalls = [as_json(stall) for stall in (*self.watchdog.in_progress(), *self.book.kept())]
        if self.group is not None:
            now = self.clock.wall(self.clock.now())
            for notes, alive in self.group.notes():
                stalls += told(notes, alive=alive, now=now)
        return in_order(joined(stalls), order, limit)

    def live_requests(self) -> list[HttpExchange]:
        """Requests under way, on all loops. Safe from any thread."""
        return [request for r in self._recorders for request in list(r.requests.active)]

    def live_sessions(self) -> list[WebSocketExchange]:
        """WebSocket sessions under way, on all loops. Safe from any thread."""
        return [session for r in self._recorders for session in list(r.websockets.active)]

    def render(self, accept: str, carried: Carried = NOTHING) -> tuple[list[bytes], str]:
        """Body, in pieces, and content type of ``/metrics``, with what other workers told for it.

        Not for an event loop's thread.
        """
        with self._lock:
            wall, cpu = time.perf_counter(), time.thread_time()
            page = self._metrics_page.render(accept, carried)
            self.itself.scraped(time.perf_counter() - wall, time.thread_time() - cpu)
            return page

    def snapshot(self) -> list[Family]:
        """All families now. Not for an event loop's thread either."""
        with self._lock:
            return self.families()

    def own_snapshot(self) -> list[Family]:
        """What this worker alone has written down by now. Not for an event loop's thread."""
        with self._lock:
            return merge([self._own_page()])

    def workers(self) -> list[int]:
        """Processes of the workers that are alive, this one's first. Not for a loop's thread."""
        with self._lock:
            others = [] if self.group is None else self.group.workers()
        return [os.getpid(), *others]

    def families(self) -> list[Family]:
        """Refresh what is read on demand, then read and merge all pages. Call under the lock."""
        self._look_for_provider()
        self._refresh()
        return families_of([self._own_page()], self.group, self.faults)

    def _own_page(self) -> ReadPage:
        """Our page, read. Call under the lock."""
        self._own_reader.update(self.page.view)
        worker = "" if self.group is None else str(os.getpid())
        return ReadPage(self._own_reader, self.page.view, worker)

    def _refresh(self) -> None:
        """Write down what is read on demand. Call under the lock."""
        for source in self._refreshed:
            try:
                source.refresh()
            except Exception as error:
                self.faults.report(type(source).__name__, error)
        self.page.beat(self.clock.now())

    def exemplars(self) -> Exemplars:
        """The latest sampled traces of this worker. From any thread."""
        return {
            (DURATION.name, labels, bucket): (value, self.clock.wall(moment), trace_id, span_id)
            for recorders in self._recorders
            for (labels, bucket), (value, moment, trace_id, span_id) in list(
                recorders.requests.exemplars.items()
            )
        }

    def _make_page(self) -> Page:
        started = psutil.Process().create_time()
        directory = self.settings.directory
        if directory is None:
            try:
                directory = home_of_group() if self.settings.share else None
                if directory is None and self.settings.sentinel:
                    directory = home_of_one()
            except Exception as error:
                self.faults.report("workers", error)
        if directory is not None:
            try:
                return self._join(directory, started)
            except OSError as error:
                logger.warning(
                    "loopscope: cannot keep its page in %s (%s); figures stay in this process. "
                    "Make it a directory that only this user may write to, or set LOOPSCOPE_DIR "
                    "to one.",
                    directory,
                    error,
                )
        return Page.anonymous(self.clock, started_wall=started)

    def _join(self, directory: Path, started: float) -> Page:
        """Become one of the workers that share ``directory``. Raises ``OSError``."""
        found = self.settings.directory is None
        if found:
            make_safe(directory.parent)
        make_safe(directory)
        page = Page.in_directory(directory, self.clock, started_wall=started)
        self.group = Group(directory, self.clock, own=lambda: self.page.path)
        if found:
            self._left_behind = left_behind(directory)
        return page

    def _remove_left_behind(self) -> None:
        """Delete what workers of a server that is gone have left beside our group's directory.

        One directory at a time: the watchdog has other things to do.
        """
        with suppress(OSError):  # another worker is just at it
            directory = next(self._left_behind, None)
            if directory is not None and remove_if_deserted(directory):
                logger.debug("loopscope: removed %s, which nobody uses any more", directory)

    def tell_routes(self, resolver: RouteResolver) -> None:
        """Let those who see nothing but stacks know what code serves which route."""
        if self.settings.sentinel and resolver not in self._resolvers:
            self._resolvers.append(resolver)

    def _tell_endpoints(self) -> None:
        if not self.faults.is_off("endpoints"):
            try:
                self._endpoints.refresh()
            except Exception as error:
                self.faults.report("endpoints", error)

    def _errand(self) -> None:
        """What is done about once a second, on the watchdog's thread.

        Whoever speaks for all workers reads what this one has written: so it has to be written,
        less often where there is so much of it that it would take more than ``_SHARE`` of a core.
        """
        self._pool_book.fold()
        self._remove_left_behind()
        self._tell_endpoints()
        now = self.clock.now()
        if self.group is None or not self._pace.is_due(now):
            return
        if self._lock.acquire(blocking=False):
            began = time.thread_time()
            try:
                self._refresh()
            finally:
                self._lock.release()
            self._pace.took(now, time.thread_time() - began)

    def _make_tracer(self) -> TraceExporter | None:
        if self.settings.traces == "off":
            return None
        try:
            return make_tracer(self.clock, self.settings.service, os.environ, self.faults)
        except Exception as error:
            self.faults.report("traces", error)
            return None

    def _look_for_provider(self) -> None:
        """Change over to a provider the service set up after we started. Call under the lock.

        Nothing tells us of it, and no request should pay for asking: so it is looked for whenever
        an application has started up, an event loop comes along, or somebody reads the figures.
        """
        if self.settings.traces == "off" or (self.tracer is not None and not self.tracer.owned):
            return
        try:
            found = provided_tracer(self.clock, os.environ, self.faults)
        except Exception as error:
            self.faults.report("traces", error)
            return
        if found is not None:
            self.tracer = found
            for recorders in self._recorders:
                recorders.trace_with(found)


_current: Agent | None = None
_guard = threading.Lock()
_hooked = False


def join_agent(settings: Settings, front: Callable[[Agent], Front]) -> Agent:
    """This process' agent, started with ``settings`` if it is the first to be asked for."""
    global _current, _hooked
    with _guard:
        if _current is None:
            if not _hooked:
                os.register_at_fork(after_in_child=_after_fork)
                atexit.register(stop_agent)
                _hooked = True
            _current = Agent(settings, front)
            _current.start()
        elif _current.settings != settings:
            logger.warning(
                "loopscope: a second middleware has other settings; those of the first one hold "
                "for the whole process"
            )
        return _current


def current_agent() -> Agent | None:
    """This process' agent, if one is running."""
    return _current


def stop_agent() -> None:
    """Stop this process' agent, if one is running."""
    agent = _current
    if agent is not None:
        _retire(agent)


def _retire(agent: Agent) -> None:
    global _current
    with _guard:
        if _current is agent:
            _current = None
    agent.stop()


def _after_fork() -> None:
    """Threads and sockets are the parent's: the child starts afresh at its first request."""
    global _current, _guard
    _guard = threading.Lock()  # whoever held it does not exist here
    agent, _current = _current, None
    if agent is not None:
        agent.abandon()


def families_of(own: list[ReadPage], group: Group | None, faults: Faults) -> list[Family]:
    """What one worker has counted itself, if it is one, and all others of its ``group``, merged.

    What the dead have left is folded by the way. One thread at a time.
    """
    if group is None:
        families = merge(own, breathe=_give_way)
    else:
        families = merge([*own, *_others(group, faults)], breathe=_give_way)
        families += group.families()
        if group.has_dead:
            _fold_the_dead(group, faults)
    return [*families, *db_client(families)]


def _others(group: Group, faults: Faults) -> list[ReadPage]:
    """What the other workers have counted: our own figures are there even if theirs are not."""
    try:
        return group.pages()
    except Exception as error:
        faults.report("workers", error)
        return []


def _fold_the_dead(group: Group, faults: Faults) -> None:
    try:
        group.fold()
    except (OSError, PageFullError) as error:
        faults.report("workers", error)


def _give_way() -> None:
    """Hand over the GIL before anybody has to wait for its switch interval of 5 ms."""
    time.sleep(0.00005)


def _is_free(recorders: Recorders) -> bool:
    """Whether nobody writes to ``recorders`` any more: their loop is closed or gone."""
    loop = recorders.loop()
    return not isinstance(loop, asyncio.AbstractEventLoop) or loop.is_closed()


def _running(exchange: HttpExchange | WebSocketExchange, tracer: Tracer | None) -> Running:
    scope = exchange.scope
    trace_id = ""
    span = getattr(exchange, "span", None)
    if tracer is not None and span is not None:
        ids = tracer.exemplar(span)
        trace_id = f"{ids[0]:032x}" if ids is not None else ""
    return Running(
        (id(exchange), exchange.step_started),
        exchange.step_started,
        exchange.route_so_far(),
        scope.get("method", ""),
        trace_id=trace_id,
    )


def _task_name(task: asyncio.Task[object]) -> str:
    """The coroutine's name, and the task's own unless asyncio numbered it."""
    coroutine = getattr(task.get_coro(), "__qualname__", "")
    name = task.get_name()
    return coroutine if name.startswith("Task-") else f"{name} ({coroutine})"


def _loop_name(loop: asyncio.AbstractEventLoop) -> str:
    return "uvloop" if type(loop).__module__.startswith("uvloop") else "asyncio"
