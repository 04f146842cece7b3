"""HTTP requests: how long, how it ended, how large, and how long it held the event loop.

Three clocks, all from the moment the server called the app: the first byte (the app sent the
response's head), the last body byte (handed to the server and accepted by it: the published
duration) and the end of the task, which background tasks put off.

The recorder belongs to one event loop and is the only writer of its slots. All a finished request
does is look up its label set and add a dozen numbers.

Most responses are *plain*: one head, one body, taken by the server at once, no error. Those have a
path of their own through here, written for few bytecodes rather than few lines: behind a real
application, whose own code has filled the processor's branch predictor, every bytecode costs about
20 ns, whatever it does. Everything else takes the general path, which shares no state with it but
the slots.
"""

from __future__ import annotations

from asyncio import CancelledError, Queue
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine
from itertools import cycle
from struct import Struct
from threading import get_ident
from types import CoroutineType
from typing import Any, NamedTuple, Protocol
from weakref import WeakSet

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.faults import Faults
from loopscope.core.histogram import Histogram, Number
from loopscope.core.metric import DURATION_BOUNDS, LONG_BOUNDS, SIZE_BOUNDS, STEP_BOUNDS, Metric
from loopscope.core.page import Page
from loopscope.core.phases import (
    AFTERWARDS,
    AWAIT_OTHER,
    CLIENT_DOWNLOAD,
    CLIENT_UPLOAD,
    LOOP_RUN,
    NOWHERE,
    PHASES,
    Gaps,
)
from loopscope.core.routes import matched_route
from loopscope.sources.awaits import AwaitTable
from loopscope.sources.children import ChildSteps, ForeignSteps
from loopscope.sources.exchange import (
    SCOPE_KEY,
    Driver,
    Exchange,
    Message,
    Receive,
    Resolver,
    Scope,
    Send,
)
from loopscope.sources.ledger import LONG, Ledger, LoopView, UnseenLoop

_BY_ROUTE = ("http_request_method", "http_route")

DURATION = Metric(
    "http_server_request_duration_seconds",
    "histogram",
    "Time from the server calling the application to the last body byte of the response.",
    ("http_request_method", "http_route", "http_response_status_code", "error_type"),
    unit="seconds",
    bounds=DURATION_BOUNDS,
)
FIRST_BYTE = Metric(
    "loopscope_request_time_to_first_byte_seconds",
    "histogram",
    "Time from the server calling the application to the start of the response.",
    _BY_ROUTE,
    unit="seconds",
    bounds=DURATION_BOUNDS,
)
BACKGROUND = Metric(
    "loopscope_request_background_seconds",
    "histogram",
    "Time a request's task went on after the last body byte (background tasks), "
    "for requests whose task went on for more than 1 ms.",
    _BY_ROUTE,
    unit="seconds",
    bounds=DURATION_BOUNDS,
)
REQUEST_SIZE = Metric(
    "http_server_request_body_size_bytes",
    "histogram",
    "Body bytes of requests whose body the application read, counted as they arrived.",
    _BY_ROUTE,
    unit="bytes",
    bounds=SIZE_BOUNDS,
)
RESPONSE_SIZE = Metric(
    "http_server_response_body_size_bytes",
    "histogram",
    "Body bytes the application sent, counted chunk by chunk.",
    _BY_ROUTE,
    unit="bytes",
    bounds=SIZE_BOUNDS,
)
LONGEST_STEP = Metric(
    "loopscope_request_longest_step_seconds",
    "histogram",
    "Each request's longest uninterrupted hold of the event loop by its own coroutine.",
    _BY_ROUTE,
    unit="seconds",
    bounds=STEP_BOUNDS,
)
PHASE = Metric(
    "loopscope_request_phase_seconds_total",
    "counter",
    "Seconds requests spent in each phase, which add up to their duration: loop_run is their own "
    "code and that of their tasks running on the event loop, loop_wait being ready to run while it "
    "ran something else, pool_wait waiting for a pool, thread_wait and thread_run being queued for "
    "and running in a thread or process, client_upload and client_download waiting for the client, "
    "await_other every other await. Not part of the duration: background, what came after the last "
    "body byte if that was over 1 ms.",
    ("http_route", "http_request_method", "phase"),
    unit="seconds",
)
OUTCOMES = Metric(
    "loopscope_request_outcomes_total",
    "counter",
    "Requests by how they ended: ok, error (a 5xx, an exception or an unfinished response), "
    "client_disconnected_before_response, client_disconnected_mid_stream, cancelled.",
    ("http_route", "http_request_method", "outcome"),
)
CHUNKS = Metric(
    "loopscope_response_chunks_total",
    "counter",
    "Body chunks of streamed responses.",
    _BY_ROUTE,
)
STREAM_DURATION = Metric(
    "loopscope_stream_duration_seconds",
    "histogram",
    "Time to the last body byte of event streams, which are kept out of "
    "http_server_request_duration_seconds.",
    _BY_ROUTE,
    unit="seconds",
    bounds=LONG_BOUNDS,
)
ESTIMATED = Metric(
    "loopscope_request_loop_wait_estimated_seconds_total",
    "counter",
    "That part of phase loop_wait which is an upper bound: the request ran just after a stall of "
    "the event loop, and when in that stall it became ready is not known.",
    ("http_route", "http_request_method"),
    unit="seconds",
)
TASKS = Metric(
    "loopscope_request_tasks",
    "histogram",
    "Tasks made for each request that made any: its fan-out.",
    _BY_ROUTE,
    bounds=(1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0),
)
TASK_SECONDS = Metric(
    "loopscope_request_task_seconds_total",
    "counter",
    "Seconds for which tasks of requests were there, each of them counted: next to the duration, "
    "how much was going on at one time.",
    ("http_route", "http_request_method"),
    unit="seconds",
)
OUTLIVING = Metric(
    "loopscope_request_tasks_outliving_total",
    "counter",
    "Tasks that were still running when the request that made them was over.",
    ("http_route", "http_request_method"),
)
QUEUE = Metric(
    "loopscope_request_queue_seconds",
    "histogram",
    "Time between a proxy's X-Request-Start and the server calling the application.",
    unit="seconds",
    bounds=DURATION_BOUNDS,
)

METRICS = (
    DURATION,
    FIRST_BYTE,
    BACKGROUND,
    REQUEST_SIZE,
    RESPONSE_SIZE,
    LONGEST_STEP,
    PHASE,
    OUTCOMES,
    CHUNKS,
    STREAM_DURATION,
    ESTIMATED,
    TASKS,
    TASK_SECONDS,
    OUTLIVING,
    QUEUE,
)

OK = "ok"
ERROR = "error"
CANCELLED = "cancelled"
LEFT_EARLY = "client_disconnected_before_response"
LEFT_MID_STREAM = "client_disconnected_mid_stream"

METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
OTHER = "_OTHER"
"""The label of every method outside the standard ones, as OpenTelemetry spells it."""

BACKGROUND_FLOOR = 0.001
"""Seconds a task may take to return after the last body byte without counting as background."""

_DISCONNECT = {"type": "http.disconnect"}

SAMPLE = 256
"""One request in so many has our own work on it timed."""

Exemplar = tuple[float, float, int, int]
"""Observed value, its moment on the recorder's clock, trace id, span id."""

Key = tuple[str, str, int, str, str]
"""Route, method, status (0: none was sent), error type, outcome."""


class Tracer(Protocol):
    """Makes spans of requests; only asked when tracing is on."""

    def begin(self, exchange: HttpExchange) -> object: ...

    def end(self, span: object, exchange: HttpExchange, ended: float, key: Key) -> None: ...

    def exemplar(self, span: object) -> tuple[int, int] | None: ...


class _Cell:
    """Where in the page one label set's numbers live.

    What every request adds to lies together, in one block. ``durations`` counts responses whose
    body went out at once: first and last byte are one moment then, so both histograms, and the
    outcome with them, are laid over the same slots. Everything else gets its series on first use.
    """

    __slots__ = ("background", "background_phase", "chunks", "duration_apart", "durations",
                 "estimated", "first_byte_apart", "key", "outliving", "phases", "request_size",
                 "sizes", "steps", "stream", "stream_outcome", "sums", "task_seconds",
                 "tasks")  # fmt: skip

    def __init__(self, key: Key, block: int) -> None:
        self.key = key
        self.durations = block + _DURATION_BUCKETS[0]
        self.sizes = block + _SIZE_BUCKETS[0]
        self.steps = block + _STEP_BUCKETS[0]
        self.sums = block * _SLOT
        """In bytes, as packing wants it."""
        self.duration_apart: Histogram | None = None
        self.first_byte_apart: Histogram | None = None
        self.stream: Histogram | None = None
        self.stream_outcome: Number | None = None
        self.request_size: Histogram | None = None
        self.chunks: Number | None = None
        self.background: Histogram | None = None
        self.background_phase: Number | None = None
        self.phases: list[Number | None] = [None] * len(PHASES)
        self.estimated: Number | None = None
        self.tasks: Histogram | None = None
        self.task_seconds: Number | None = None
        self.outliving: Number | None = None


# A cell's block: five sums side by side, then the buckets. Runs relative to its first slot.
_DURATION_SUM = (0, 1)
_SIZE_SUM = (1, 1)
_STEP_SUM = (2, 1)
_LOOP_RUN = (3, 1)
_AWAIT_OTHER = (4, 1)
_DURATION_BUCKETS = (5, len(DURATION_BOUNDS) + 1)
_SIZE_BUCKETS = (sum(_DURATION_BUCKETS), len(SIZE_BOUNDS) + 1)
_STEP_BUCKETS = (sum(_SIZE_BUCKETS), len(STEP_BOUNDS) + 1)
_BLOCK = sum(_STEP_BUCKETS)

_GAP_PHASES = range(len(PHASES))
_SLOT = Struct("d").size
_SUMS = Struct("5d")
_read_sums = _SUMS.unpack_from
_write_sums = _SUMS.pack_into


class RequestRecorder:
    """Everything one event loop's thread records about HTTP requests; the only writer of its slots.

    ``max_series`` bounds the label sets; requests beyond it are folded into ``_OVERFLOW``.
    ``queue_from`` reads from a scope how many seconds a request had waited before it came here.
    """

    def __init__(
        self,
        page: Page,
        now: Callable[[], float],
        faults: Faults,
        awaits: AwaitTable,
        *,
        max_series: int,
        stream_types: tuple[str, ...] = (),
        queue_from: Callable[[Scope], float | None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.now = now
        self.faults = faults
        self.awaits = awaits
        self._queue_from = queue_from
        self.trace_with(tracer)
        self.active: set[HttpExchange] = set()
        """Requests whose task has not ended. Copy before looking at it from another thread."""
        self.stream_types = tuple(kind.encode() for kind in stream_types)
        self.overhead = 0.0
        """Seconds spent on finishing requests, estimated from one in ``SAMPLE``."""
        self.is_sampled = cycle((*(SAMPLE - 1) * (False,), True))
        self.thread = 0
        """The only thread that may write; 0 once the recorder is out of use."""
        self.latest: Exchange | None = None
        """The request its thread was called for last."""
        self.slots = page.slots
        self.lanes: WeakSet[Lane] = WeakSet()
        """Whoever remembers cells of ours."""
        self._page = page
        self._allocated: dict[tuple[str, tuple[str, ...]], int] = {}
        self._cells: Budget[Key, _Cell] = Budget(max_series, self._make_cell, self._overflow_cell)
        self._queue: Histogram | None = None
        if queue_from is not None:
            self._queue = Histogram(self.slots, page.allocate(QUEUE), QUEUE.bounds)

        self.exemplars: dict[tuple[tuple[str, ...], int], Exemplar] = {}
        """The latest sampled trace by (labels, bucket) of the duration histogram."""
        self.switch_off: Callable[[], None] = lambda: None
        """What ends the use of this recorder once it has failed too often."""
        self.loop: LoopView = UnseenLoop()
        """What is known of the event loop; the monitor's, where there is one."""
        self.malformed = 0
        """Messages the app sent that no server would understand; they were passed on unread."""

    @property
    def folded(self) -> int:
        """How many requests were folded into the overflow series."""
        return self._cells.folded

    def abandon(self) -> None:
        """Let go of the page and the tracer: requests under way end without leaving a mark."""
        self._cells.forget()
        for lane in self.lanes:
            lane.clear()
        self.trace_with(None)

    def trace_with(self, tracer: Tracer | None) -> None:
        """Have spans of the requests to come made by ``tracer``."""
        self.tracer = tracer
        self.plain = tracer is None and self._queue_from is None
        """Whether a request can be plain at all."""

    def failed(self, error: Exception) -> None:
        """Recording went wrong: the request goes on, the fault is counted."""
        self.faults.report("requests", error)
        if self.faults.is_off("requests"):
            self.switch_off()

    def cell(self, key: Key) -> _Cell | None:
        """The numbers of a label set; None where there is no room for them."""
        return self._cells.admit(key)

    def record(self, cell: _Cell, exchange: HttpExchange, totals: Totals, ended: float) -> None:
        """Add one finished request to its label set, whatever it was like."""
        first_byte = exchange.first_byte
        last_byte = exchange.last_byte
        duration, size, step, loop_run, await_other = _read_sums(self.slots, cell.sums)
        if first_byte and first_byte == last_byte and not exchange.is_stream:
            self._count(cell.durations, DURATION_BOUNDS, totals.duration)
            duration += totals.duration
        else:
            self._record_apart(cell, exchange, totals.duration)
        if first_byte:
            self._count(cell.sizes, SIZE_BOUNDS, exchange.bytes_sent)
            size += exchange.bytes_sent
        self._count(cell.steps, STEP_BOUNDS, totals.longest_step)
        step += totals.longest_step
        await_other += totals.duration - totals.loop_run
        ledger = exchange.ledger
        if ledger is not None:
            await_other -= self.record_ledger(cell, ledger)
        loop_run += totals.loop_run
        _write_sums(self.slots, cell.sums, duration, size, step, loop_run, await_other)
        if exchange.bytes_received:
            self.record_request_size(cell, exchange.bytes_received)
        if exchange.chunks:
            self._record_chunks(cell, exchange.chunks)
        if last_byte and ended - last_byte > BACKGROUND_FLOOR:
            self.record_background(cell, ended - last_byte)
        if self._queue is not None:
            self._record_queue(exchange)

    def _count(self, base: int, bounds: tuple[float, ...], value: float) -> None:
        self.slots[base + bisect_left(bounds, value)] += 1.0

    def _record_apart(self, cell: _Cell, exchange: HttpExchange, duration: float) -> None:
        """First byte and last byte where they are not one moment, or one is missing."""
        if exchange.is_stream:
            self._record_stream(cell, duration)
        else:
            if cell.duration_apart is None:
                cell.duration_apart = self._duration_apart(cell.key)
            cell.duration_apart.observe(duration)
        if exchange.first_byte:
            if cell.first_byte_apart is None:
                cell.first_byte_apart = self._histogram(FIRST_BYTE, cell)
            cell.first_byte_apart.observe(exchange.first_byte - exchange.started)

    def add_exemplar(self, key: Key, exemplar: Exemplar) -> None:
        """Keep ``exemplar`` for the bucket of the duration histogram its value falls into."""
        if key in self._cells.known:
            bucket = bisect_left(DURATION_BOUNDS, exemplar[0])
            self.exemplars[_duration_labels(key), bucket] = exemplar

    def record_request_size(self, cell: _Cell, size: int) -> None:
        """Add the bytes of a request's body."""
        if cell.request_size is None:
            cell.request_size = self._histogram(REQUEST_SIZE, cell)
        cell.request_size.observe(size)

    def record_background(self, cell: _Cell, seconds: float) -> None:
        """Add the time a task went on after its response."""
        if cell.background is None or cell.background_phase is None:
            route, method = cell.key[:2]
            cell.background = self._histogram(BACKGROUND, cell)
            cell.background_phase = self._number(PHASE, route, method, AFTERWARDS)
        cell.background.observe(seconds)
        cell.background_phase.add(seconds)

    def record_ledger(self, cell: _Cell, ledger: Ledger) -> float:
        """Add what is known of a request's waits; the seconds that are not ``await_other``."""
        known = 0.0
        gaps = ledger.gaps
        for phase in _GAP_PHASES:
            seconds = gaps.seconds[phase]
            if seconds:
                known += seconds
                number = cell.phases[phase] or self._phase(cell, phase)
                number.add(seconds)
        if gaps.estimated:
            if cell.estimated is None:
                cell.estimated = self._number(ESTIMATED, *cell.key[:2])
            cell.estimated.add(gaps.estimated)
        if ledger.tasks:
            self._record_tasks(cell, ledger)
        if ledger.awaits:
            self.awaits.add(cell.key[0], ledger.awaits)
        return known

    def _phase(self, cell: _Cell, phase: int) -> Number:
        number = cell.phases[phase] = self._number(PHASE, *cell.key[:2], PHASES[phase])
        return number

    def _record_tasks(self, cell: _Cell, ledger: Ledger) -> None:
        if cell.tasks is None or cell.task_seconds is None or cell.outliving is None:
            cell.tasks = self._histogram(TASKS, cell)
            cell.task_seconds = self._number(TASK_SECONDS, *cell.key[:2])
            cell.outliving = self._number(OUTLIVING, *cell.key[:2])
        cell.tasks.observe(ledger.tasks)
        seconds = ledger.task_seconds
        if ledger.children:
            for child in ledger.alive():
                seconds += self.now() - child.made
                cell.outliving.add()
            ledger.let_go()
        cell.task_seconds.add(seconds)

    def _record_chunks(self, cell: _Cell, count: int) -> None:
        if cell.chunks is None:
            route, method = cell.key[:2]
            cell.chunks = self._number(CHUNKS, method, route)
        cell.chunks.add(count)

    def _record_stream(self, cell: _Cell, seconds: float) -> None:
        if cell.stream is None or cell.stream_outcome is None:
            route, method, _, _, outcome = cell.key
            cell.stream = self._histogram(STREAM_DURATION, cell)
            cell.stream_outcome = self._number(OUTCOMES, route, method, outcome)
        cell.stream.observe(seconds)
        cell.stream_outcome.add()

    def _record_queue(self, exchange: HttpExchange) -> None:
        assert self._queue is not None and self._queue_from is not None
        seconds = self._queue_from(exchange.scope)
        if seconds is not None:
            self._queue.observe(max(0.0, seconds - (self.now() - exchange.started)))

    def _histogram(self, metric: Metric, cell: _Cell) -> Histogram:
        """A histogram by route, which all cells of the route share."""
        route, method = cell.key[:2]
        return Histogram(self.slots, self._allocate(metric, (method, route)), metric.bounds)

    def _number(self, metric: Metric, *labels: str) -> Number:
        return Number(self.slots, self._allocate(metric, labels))

    def _allocate(self, metric: Metric, labels: tuple[str, ...]) -> int:
        """The slots of a series that several cells may share."""
        index = self._allocated.get((metric.name, labels))
        if index is None:
            index = self._allocated[metric.name, labels] = self._page.allocate(metric, labels)
        return index

    def _duration_apart(self, key: Key) -> Histogram:
        """A duration histogram of its own, whose buckets are the outcome's counter as well."""
        base = self._allocate(DURATION, _duration_labels(key))
        self._page.lay(OUTCOMES, (key[0], key[1], key[4]), (base, _DURATION_BUCKETS[1]))
        return Histogram(self.slots, base, DURATION_BOUNDS)

    def _make_cell(self, key: Key) -> _Cell:
        route, method, _, _, outcome = key
        by_route = (method, route)
        block = self._page.allocate_block(_BLOCK)

        def lay(metric: Metric, labels: tuple[str, ...], *runs: tuple[int, int]) -> None:
            self._page.lay(metric, labels, *((block + first, count) for first, count in runs))

        lay(DURATION, _duration_labels(key), _DURATION_BUCKETS, _DURATION_SUM)
        lay(FIRST_BYTE, by_route, _DURATION_BUCKETS, _DURATION_SUM)
        lay(OUTCOMES, (route, method, outcome), _DURATION_BUCKETS)
        lay(RESPONSE_SIZE, by_route, _SIZE_BUCKETS, _SIZE_SUM)
        lay(LONGEST_STEP, by_route, _STEP_BUCKETS, _STEP_SUM)
        lay(PHASE, (route, method, LOOP_RUN), _LOOP_RUN)
        lay(PHASE, (route, method, AWAIT_OTHER), _AWAIT_OTHER)
        return _Cell(key, block)

    def _overflow_cell(self) -> _Cell:
        return self._make_cell((OVERFLOW, OTHER, 0, OVERFLOW, OVERFLOW))


def _duration_labels(key: Key) -> tuple[str, str, str, str]:
    route, method, status, error_type, _ = key
    return (method, route, str(status) if status else "", error_type)


class Lane:
    """What one middleware needs to measure requests on one thread: where to, and a short cut.

    ``cells`` knows the numbers of plain requests by what routing left behind (``matched_route``),
    method and status: for all routes whose identity alone decides their template, that saves
    finding the template and building the label set.
    """

    __slots__ = ("__weakref__", "_kept", "cells", "recorder", "resolver")

    def __init__(self, recorder: RequestRecorder, resolver: Resolver) -> None:
        self.recorder = recorder
        self.resolver = resolver
        self.cells: dict[tuple[int, str, int], _Cell] = {}
        self._kept: dict[int, object] = {}  # alive, so that their ids stay theirs
        resolver.subscribe(self)
        recorder.lanes.add(self)

    def clear(self) -> None:
        """Forget all short cuts: templates may have changed."""
        self.cells.clear()
        self._kept.clear()

    def find(self, scope: Scope, status: int, matched: object) -> _Cell | None:
        """The cell of a plain request, found the long way and remembered for the next one."""
        route = self.resolver.resolve(scope, status)
        key: Key = (route, method_label(scope), status, "", OK)
        cell = self.recorder.cell(key)
        if cell is not None and cell.key == key and self.resolver.is_certain(matched):
            if len(self.cells) >= _MOST_SHORT_CUTS:
                self.clear()
            self._kept[id(matched)] = matched
            self.cells[id(matched), scope["method"], status] = cell
        return cell


_MOST_SHORT_CUTS = 1024


class Totals(NamedTuple):
    """What a finished request amounts to, in seconds."""

    duration: float
    longest_step: float
    loop_run: float
    """Until the last body byte."""


class HttpExchange(Exchange):
    """One HTTP request on its way through the app.

    What every request needs has a slot; what few need has a default on the class.
    """

    __slots__ = ("__dict__", "__weakref__", "_receive", "_send", "bytes_received", "bytes_sent",
                 "chunks", "head", "lane", "last_byte", "ledger", "plain", "status")  # fmt: skip

    plain: bool
    """Whether nothing has happened yet that calls for more than the short path."""
    head: Message | None
    """The message that started the response."""
    chunks: int
    """Body messages before the last one."""
    first_byte = 0.0
    """Set when chunks are sent; else the body went out at once, with the last byte."""
    is_stream = False
    disconnected = False
    left_early = False
    """Whether the app was told that its client had left before it began to respond."""
    is_uploading = False
    """Whether the app waits for more of the request's body."""
    is_read = False
    """Whether the app has the whole body."""
    sending: object = None
    """What ``send`` returned for the latest body message but the last."""
    held_up = False
    """Whether the server could not take the last body message at once."""
    loop_run_until_last_byte: float | None = None
    span: object = None

    def __init__(self, lane: Lane, scope: Scope, receive: Receive, send: Send) -> None:
        recorder = lane.recorder
        self.lane = lane
        self.scope = scope
        self._receive = receive
        self._send = send
        self.status = self.bytes_received = self.bytes_sent = self.chunks = 0
        self.last_byte = self.suspended = 0.0
        self.head = self.ledger = self.pending = self.steps = None
        self.plain = plain = recorder.plain
        scope[SCOPE_KEY] = self
        self.now = now = recorder.now
        self.started = self.step_started = now()
        recorder.active.add(self)  # last: from here on other threads look at it
        recorder.latest = self
        if not plain:
            self._begin_span()

    @property
    def app(self) -> object:
        """The application that is going to answer."""
        return self.lane.resolver.app

    def route_so_far(self) -> str:
        """The route's template, as far as routing has come. From any thread."""
        return self.lane.resolver.resolve(self.scope)

    @property
    def loop(self) -> LoopView:
        """What is known of the event loop that runs it."""
        return self.lane.recorder.loop

    def is_answered(self) -> bool:
        """Whether the last byte has gone out, though the app may go on."""
        return self.last_byte > 0.0 and _is_done(self.pending)

    def phase(self) -> str:
        """What it is doing right now. From any thread."""
        if self.step_started > self.suspended:
            return LOOP_RUN
        if self.is_answered():
            return AFTERWARDS
        phase = NOWHERE if self.ledger is None else self.ledger.gaps.present()
        if phase == NOWHERE and self.is_uploading:
            phase = CLIENT_UPLOAD
        elif phase == NOWHERE and self.is_sending():
            phase = CLIENT_DOWNLOAD
        return AWAIT_OTHER if phase == NOWHERE else PHASES[phase]

    def is_sending(self) -> bool:
        """Whether the server has not yet taken the latest message with a body."""
        if self.sending is None and self.pending is None:
            return False
        return not (_is_done(self.sending) and _is_done(self.pending))

    def resumed(self, driver: Driver, since: float, moment: float, waiting_for: object) -> None:
        recorder = self.lane.recorder
        try:
            if self.last_byte and _is_done(self.pending):
                return
            ledger = self.ledger
            if ledger is None:
                ledger = self.open_ledger()
            elif moment - since <= LONG and ledger.gaps.is_settled():
                return
            ledger.close_gap(self, recorder.loop, driver, since, moment, waiting_for)
            if moment - since >= recorder.awaits.threshold and waiting_for is not None:
                alone = self.suspended <= since
                ledger.note_wait(recorder.awaits, driver, since, moment, alone=alone)
        except Exception as fault:
            recorder.failed(fault)

    def stepped(self, began: float, ended: float) -> None:
        if self.pending is not None:
            ended = self._settle_within(began, ended)
        elif self.last_byte:
            return
        ledger = self.ledger
        if ledger is not None and ended > began:
            held = ended - began
            ledger.loop_run += held
            if held > ledger.longest:
                ledger.longest = held

    def _settle_within(self, began: float, ended: float) -> float:
        """Like ``settle``, which will follow, for the step of a task: until when it counts."""
        self.plain = False
        self.first_byte = self.first_byte or self.last_byte
        if not _is_done(self.pending):
            self.held_up = True
            return ended
        if self.held_up:
            self.held_up = False
            self.last_byte = began
        return min(ended, self.last_byte)

    def is_under_way(self) -> bool:
        return self in self.lane.recorder.active

    def adopt(self, coroutine: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        """What to make a task of in place of ``coroutine``, which the request wants to run."""
        recorder = self.lane.recorder
        if recorder.thread != get_ident():
            return coroutine
        if self.last_byte and getattr(self.pending, "cr_running", False):
            return coroutine  # the server's: the next request that a client has sent in one go
        kind = ChildSteps if isinstance(coroutine, CoroutineType) else ForeignSteps
        return kind(coroutine, self, self.ledger or self.open_ledger())

    def sleeps(self, future: object, until: float) -> None:
        if not self.is_answered():
            self.open_ledger().note_sleep(future, until)

    def own_gaps(self) -> Gaps | None:
        recorder = self.lane.recorder
        if (
            self.last_byte
            or self.step_started <= self.suspended  # a callback's, or a chore's
            or recorder.thread != get_ident()
        ):
            return None
        return (self.ledger or self.open_ledger()).gaps

    def shared_gaps(self) -> Gaps | None:
        """Where to note what changes phases; None once the request is answered. Any thread.

        After the answer nobody shares out gaps any more, and changes would only pile up.
        """
        if self not in self.lane.recorder.active or (self.last_byte and self.is_answered()):
            return None
        return (self.ledger or self.open_ledger()).gaps

    def open_ledger(self) -> Ledger:
        """The ledger, made when there is something to write into it."""
        ledger = self.ledger
        if ledger is None:
            # whichever thread was first
            ledger = self.ledger = self.__dict__.setdefault("first_ledger", Ledger())
        return ledger

    def _begin_span(self) -> None:
        recorder = self.lane.recorder
        if recorder.tracer is not None:
            try:
                self.span = recorder.tracer.begin(self)
            except Exception as error:
                recorder.faults.report("traces", error)

    def send(self, message: Message) -> Awaitable[None]:  # noqa: C901
        """Pass ``message`` to the server and note what it says.

        A plain function that returns the server's own awaitable: no message costs a coroutine of
        ours. Whether the last one went out at once or had to wait is looked up afterwards.
        """
        try:
            kind = message["type"]
            if kind == "http.response.body":
                # `in` and a subscript cost less than a call of `get`.
                if "body" in message:
                    self.bytes_sent += len(message["body"])
                if "more_body" in message and message["more_body"]:  # noqa: RUF019
                    if not self.chunks:
                        self._begin_streaming()
                    self.chunks += 1
                elif not self.last_byte:
                    if not self.plain and self.chunks and self._is_hung_up():
                        self.disconnected = True
                    self.last_byte = self.now()
            elif kind == "http.response.start":
                self.status = message["status"]
                self.head = message
            elif kind == "http.response.pathsend":
                self.bytes_sent = int(_header(self.head, b"content-length") or 0)
                self.last_byte = self.now()
        except (KeyError, TypeError, ValueError, AttributeError):
            self.lane.recorder.malformed += 1  # the server will say what is wrong with the message
        sent = self._send(message)
        if self.last_byte:
            if self.pending is None:
                self.pending = sent
        elif self.chunks:
            self.sending = sent
        return sent

    def _begin_streaming(self) -> None:
        self.plain = False
        self.first_byte = self.now()
        kind = _header(self.head, b"content-type")
        self.is_stream = kind.startswith(self.lane.recorder.stream_types)

    def settle(self, moment: float, step_started: float, loop_run: float) -> None:
        """The last byte is gone when the server has taken it, not when the app offered it.

        A server that could take it at once ended its ``send`` within the step that made it. One
        that had to wait (back-pressure) has ended it in the first step that finds it ended, and
        being done waiting is what that step began with.
        """
        self.plain = False
        self.first_byte = self.first_byte or self.last_byte
        if not _is_done(self.pending):
            self.held_up = True
            return
        self.pending = None
        if self.held_up:
            self.last_byte = step_started
        after = moment - max(self.last_byte, step_started)
        self.loop_run_until_last_byte = loop_run - after

    async def receive(self) -> Message:
        """Pass on what the server has and count the body's bytes."""
        self.is_uploading = not self.is_read
        try:
            message = await self._receive()
        finally:
            self.is_uploading = False
        try:
            if "more_body" not in message or not message["more_body"]:
                self.is_read = True
            body = message.get("body")
            if body:
                self.bytes_received += len(body)
            elif message["type"] == "http.disconnect" and not self.last_byte:
                self.disconnected = True
                self.plain = False
                if not self.status:
                    self.left_early = True
        except (KeyError, TypeError, AttributeError):
            self.lane.recorder.malformed += 1  # what to make of it is for the app to say
        return message

    def finish(self, error: BaseException | None) -> None:  # noqa: C901
        """Record the request. One straight line for a plain one: see the module's docstring."""
        lane = self.lane
        recorder = lane.recorder
        recorder.active.discard(self)
        try:
            ended = self.now()
            scope = self.scope
            if SCOPE_KEY in scope:
                del scope[SCOPE_KEY]
            last_byte = self.last_byte
            step_started = self.step_started
            status = self.status
            try:
                # The attributes of uvicorn's objects; `getattr` with a default costs more.
                unfinished = (
                    self.pending.cr_frame is not None  # type: ignore[attr-defined]
                    or self._receive.__self__.disconnected is True  # type: ignore[attr-defined]
                )
            except AttributeError:
                unfinished = not _is_done(self.pending) or self.client_left()
            if (
                error is not None
                or unfinished
                or last_byte < step_started  # never, or sent by something that is not ours
                or status >= 500
                or not self.plain
            ):
                self._finish_any(error, ended)
            else:
                matched = matched_route(scope)
                cell = lane.cells.get((id(matched), scope["method"], status))
                if cell is None:
                    cell = lane.find(scope, status, matched)
                if cell is not None:
                    slots = recorder.slots
                    sums = cell.sums
                    after = ended - last_byte
                    duration = last_byte - self.started
                    size = self.bytes_sent
                    step = ended - step_started
                    loop_run = step - after
                    steps = self.steps
                    if steps is not None:
                        loop_run += steps.loop_run
                        if steps.longest > step:
                            step = steps.longest
                    awaited = duration - loop_run
                    ledger = self.ledger
                    if ledger is not None:
                        loop_run += ledger.loop_run
                        step = max(step, ledger.longest)
                        awaited -= ledger.loop_run + recorder.record_ledger(cell, ledger)
                    slots[cell.durations + bisect_left(DURATION_BOUNDS, duration)] += 1.0
                    slots[cell.sizes + bisect_left(SIZE_BOUNDS, size)] += 1.0
                    slots[cell.steps + bisect_left(STEP_BOUNDS, step)] += 1.0
                    durations, sizes, longest_steps, loop_runs, await_other = _read_sums(
                        slots, sums
                    )
                    _write_sums(
                        slots, sums, durations + duration, sizes + size, longest_steps + step,
                        loop_runs + loop_run, await_other + awaited,
                    )  # fmt: skip
                    if self.bytes_received:
                        recorder.record_request_size(cell, self.bytes_received)
                    if after > BACKGROUND_FLOOR:
                        recorder.record_background(cell, after)
                elif self.ledger is not None:
                    self.ledger.let_go()
            if next(recorder.is_sampled):
                recorder.overhead += (self.now() - ended) * SAMPLE
        except Exception as fault:
            recorder.failed(fault)

    def _finish_any(self, error: BaseException | None, ended: float) -> None:
        """Record a request that is not plain."""
        recorder = self.lane.recorder
        totals = self._totals(error, ended)
        route = self.lane.resolver.resolve(self.scope, self.status)
        key = self._key(route, error)
        cell = recorder.cell(key)
        if cell is not None:
            recorder.record(cell, self, totals, ended)
        elif self.ledger is not None:
            self.ledger.let_go()
        if self.span is not None:
            self._end_span(ended, key, totals.duration)

    def _totals(self, error: BaseException | None, ended: float) -> Totals:
        longest_step = loop_run = ended - self.step_started
        if self.steps is not None:
            loop_run += self.steps.loop_run
            longest_step = max(longest_step, self.steps.longest)
        if self.pending is not None:
            self.settle(ended, self.step_started, loop_run)
            if self.pending is not None or (error is not None and self.held_up):
                self.last_byte = 0.0  # what ended was the attempt
        self.first_byte = self.first_byte or self.last_byte
        if self.last_byte and self.loop_run_until_last_byte is not None:
            loop_run = self.loop_run_until_last_byte
        ledger = self.ledger
        if ledger is not None:
            loop_run += ledger.loop_run
            longest_step = max(longest_step, ledger.longest)
        return Totals((self.last_byte or ended) - self.started, longest_step, loop_run)

    def _end_span(self, ended: float, key: Key, duration: float) -> None:
        tracer = self.lane.recorder.tracer
        if tracer is not None:
            tracer.end(self.span, self, ended, key)
            ids = tracer.exemplar(self.span)
            if ids is not None and not self.is_stream:
                self.lane.recorder.add_exemplar(key, (duration, ended, *ids))

    def _key(self, route: str, error: BaseException | None) -> Key:
        outcome = self._outcome(error)
        method = method_label(self.scope)
        # What a framework answers to whoever left while it read the body, a 500, reaches nobody.
        status = 0 if outcome == LEFT_EARLY else self.status
        if outcome == OK:
            return (route, method, status, "", OK)
        if outcome != ERROR:
            return (route, method, status, outcome, outcome)
        if error is not None:
            return (route, method, status or 500, type_name(error), ERROR)
        if self.last_byte:
            return (route, method, status, str(status), ERROR)
        return (route, method, status or 500, "incomplete_response", ERROR)

    def _outcome(self, error: BaseException | None) -> str:
        if self.client_left() or _is_client_disconnect(error) or self._is_cut_short():
            return LEFT_MID_STREAM if self.status and not self.left_early else LEFT_EARLY
        if isinstance(error, CancelledError | GeneratorExit):
            return OK if self.last_byte and self.status < 500 else CANCELLED
        if error is None and self.last_byte and self.status < 500:
            return OK
        return ERROR

    def client_left(self) -> bool:
        """Whether the client went away before it had everything.

        Known when the app was told so (``http.disconnect``). An app that never asks is never told,
        and uvicorn then swallows what it sends; but its request object, whose method ``receive``
        is, knows.
        """
        if self.disconnected:
            return True
        server: object = getattr(self._receive, "__self__", None)
        return getattr(server, "disconnected", False) is True

    def _is_cut_short(self) -> bool:
        """Whether the last byte never came because nobody was there to take it."""
        return not self.last_byte and self._is_hung_up()

    def _is_hung_up(self) -> bool:
        """Whether the connection is closed: asked before the last byte, the client has left.

        Again for apps that never ask. Under hypercorn ``receive`` takes from a queue, where the
        news lies waiting: it is looked at, not taken. The receiver of gunicorn's own worker knows
        as well; granian keeps it to itself.
        """
        server: object = getattr(self._receive, "__self__", None)
        try:
            waiting: Any = getattr(server, "_queue", ())
            closed = getattr(server, "_closed", False)
            return _DISCONNECT in waiting if isinstance(server, Queue) else closed is True
        except Exception:  # somebody else's object
            return False


def _header(message: Message | None, name: bytes) -> bytes:
    """The first header called ``name`` (lower case) of a message, or nothing."""
    if message is not None:
        for key, value in message.get("headers", ()):
            if key.lower() == name:
                return bytes(value)
    return b""


def _is_done(awaitable: object) -> bool:
    """Whether what ``send`` returned has ended; of what is no coroutine that is not known."""
    return getattr(awaitable, "cr_frame", None) is None


def method_label(scope: Scope) -> str:
    """The request's method as a label."""
    method: str = scope["method"]
    return method if method in METHODS else OTHER


def type_name(error: BaseException) -> str:
    """The exception's class as OpenTelemetry wants ``error.type``: qualified, unless built in."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_client_disconnect(error: BaseException | None) -> bool:
    """Starlette's way of telling an app that its client left; matched by name, not by import."""
    return error is not None and type(error).__name__ == "ClientDisconnect"
