"""HTTP requests: how long, how it ended, how large, and how long it held the event loop.

Three clocks, all from the moment the server called the app: the first byte (the app sent the
response's head), the last body byte (handed to the server and accepted by it: the published
duration) and the end of the task, which background tasks put off.

The recorder belongs to one event loop and is the only writer of its slots. All a finished request
does is look up its label set and add a dozen numbers.
"""

from __future__ import annotations

from asyncio import CancelledError
from bisect import bisect_left
from collections.abc import Awaitable, Callable
from typing import Protocol

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.faults import Faults
from loopscope.core.histogram import Buckets, Histogram, Number
from loopscope.core.metric import DURATION_BOUNDS, LONG_BOUNDS, SIZE_BOUNDS, STEP_BOUNDS, Metric
from loopscope.core.page import Page, PageFullError
from loopscope.sources.exchange import SCOPE_KEY, Exchange, Message, Receive, Scope, Send

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
    "Seconds requests spent in each phase: loop_run is their own coroutine running on the event "
    "loop until the last body byte, background is what came after it if that was over 1 ms.",
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
    QUEUE,
)

OK = "ok"
ERROR = "error"
CANCELLED = "cancelled"
LEFT_EARLY = "client_disconnected_before_response"
LEFT_MID_STREAM = "client_disconnected_mid_stream"
OUTCOME_VALUES = (OK, ERROR, LEFT_EARLY, LEFT_MID_STREAM, CANCELLED)

METHODS = frozenset(
    ("GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "QUERY")
)
OTHER = "_OTHER"
"""The label of every method outside the standard ones, as OpenTelemetry spells it."""

BACKGROUND_FLOOR = 0.001
"""Seconds a task may take to return after the last body byte without counting as background."""

SAMPLE = 256
"""One request in so many has our own work on it timed."""

Exemplar = tuple[float, float, int, int]
"""Observed value, its moment on the recorder's clock, trace id, span id."""

Key = tuple[str, str, int, str, str]
"""Route, method, status (0: none was sent), error type, outcome."""


class Resolver(Protocol):
    """Turns a scope, after routing, into a route template. Never raises."""

    def resolve(self, scope: Scope, root_path_before: str, status: int = 200) -> str: ...


class Tracer(Protocol):
    """Makes spans of requests; only asked when tracing is on."""

    def begin(self, exchange: HttpExchange) -> object: ...

    def end(self, span: object, exchange: HttpExchange, ended: float, key: Key) -> None: ...

    def exemplar(self, span: object) -> tuple[int, int] | None: ...


class _Cell:
    """Where in the page one label set's numbers live.

    What every request adds to lies together, in one block. ``duration`` counts responses whose
    body went out at once: first and last byte are one moment then, so both histograms, and the
    outcome with them, are laid over the same slots. Everything else gets its series on first use.
    """

    __slots__ = (
        "background",
        "background_phase",
        "chunks",
        "duration",
        "duration_apart",
        "first_byte_apart",
        "longest_step",
        "request_size",
        "response_size",
        "stream",
        "stream_outcome",
        "sums",
    )

    def __init__(self, sums: int) -> None:
        self.sums = sums
        self.duration = Buckets(sums + _BUCKETS_OF_DURATION[0], DURATION_BOUNDS)
        self.response_size = Buckets(sums + _BUCKETS_OF_SIZE[0], SIZE_BOUNDS)
        self.longest_step = Buckets(sums + _BUCKETS_OF_STEP[0], STEP_BOUNDS)
        self.duration_apart: Histogram | None = None
        self.first_byte_apart: Histogram | None = None
        self.stream: Histogram | None = None
        self.stream_outcome: Number | None = None
        self.request_size: Histogram | None = None
        self.chunks: Number | None = None
        self.background: Histogram | None = None
        self.background_phase: Number | None = None


# A cell's block: four sums side by side, then the buckets. Runs relative to its first slot.
_SUM_OF_DURATION = (0, 1)
_SUM_OF_SIZE = (1, 1)
_SUM_OF_STEP = (2, 1)
_LOOP_RUN = (3, 1)
_BUCKETS_OF_DURATION = (4, len(DURATION_BOUNDS) + 1)
_BUCKETS_OF_SIZE = (sum(_BUCKETS_OF_DURATION), len(SIZE_BOUNDS) + 1)
_BUCKETS_OF_STEP = (sum(_BUCKETS_OF_SIZE), len(STEP_BOUNDS) + 1)
_BLOCK = sum(_BUCKETS_OF_STEP)


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
        *,
        max_series: int,
        stream_types: tuple[str, ...] = (),
        queue_from: Callable[[Scope], float | None] | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.now = now
        self.faults = faults
        self.tracer = tracer
        self.active: set[HttpExchange] = set()
        """Requests whose task has not ended. Copy before looking at it from another thread."""
        self.stream_types = tuple(kind.encode() for kind in stream_types)
        self.overhead = 0.0
        """Seconds spent on starting and finishing requests, estimated from one in ``SAMPLE``."""
        self.until_sample = SAMPLE
        self._page = page
        self._slots = page.slots
        self._allocated: dict[tuple[str, tuple[str, ...]], int] = {}
        self._cells: Budget[Key, _Cell] = Budget(max_series, self._cell, self._overflow_cell)
        self._known = self._cells.known
        self._queue_from = queue_from
        self._queue = self._histogram(QUEUE, ()) if queue_from is not None else None

        self.exemplars: dict[tuple[tuple[str, ...], int], Exemplar] = {}
        """The latest sampled trace by (labels, bucket) of the duration histogram."""
        self.switch_off: Callable[[], None] = lambda: None
        """What ends the use of this recorder once it has failed too often."""
        self.malformed = 0
        """Messages the app sent that no server would understand; they were passed on unread."""

    @property
    def folded(self) -> int:
        """How many requests were folded into the overflow series."""
        return self._cells.folded

    def failed(self, error: Exception) -> None:
        """Recording went wrong: the request goes on, the fault is counted."""
        self.faults.report("requests", error)
        if self.faults.is_off("requests"):
            self.switch_off()

    def record(self, exchange: HttpExchange, key: Key, ended: float) -> None:
        """Add one finished request to its label set."""
        cell = self._known.get(key) or self._cells.admit(key)
        if cell is None:
            return
        slots = self._slots
        sums = cell.sums
        first_byte = exchange.first_byte
        last_byte = exchange.last_byte
        if first_byte and first_byte == last_byte and not exchange.is_stream:
            duration = exchange.duration
            buckets = cell.duration
            if not buckets.above < duration <= buckets.upto:
                buckets.find(duration)
            slots[buckets.slot] += 1.0
            slots[sums] += duration
        else:
            self._record_apart(cell, key, exchange)
        if first_byte:
            size = exchange.bytes_sent
            buckets = cell.response_size
            if not buckets.above < size <= buckets.upto:
                buckets.find(size)
            slots[buckets.slot] += 1.0
            slots[sums + 1] += size
        step = exchange.longest_step
        buckets = cell.longest_step
        if not buckets.above < step <= buckets.upto:
            buckets.find(step)
        slots[buckets.slot] += 1.0
        slots[sums + 2] += step
        slots[sums + 3] += exchange.loop_run_until_last_byte
        if exchange.bytes_received:
            self._record_request_size(cell, key, exchange.bytes_received)
        if exchange.chunks:
            self._record_chunks(cell, key, exchange.chunks)
        if last_byte and ended - last_byte > BACKGROUND_FLOOR:
            self._record_background(cell, key, ended - last_byte)
        if self._queue is not None:
            self._record_queue(exchange)

    def _record_apart(self, cell: _Cell, key: Key, exchange: HttpExchange) -> None:
        """First byte and last byte where they are not one moment, or one is missing."""
        if exchange.is_stream:
            self._record_stream(cell, key, exchange.duration)
        else:
            if cell.duration_apart is None:
                cell.duration_apart = self._duration_apart(key)
            cell.duration_apart.observe(exchange.duration)
        if exchange.first_byte:
            if cell.first_byte_apart is None:
                cell.first_byte_apart = self._histogram(FIRST_BYTE, (key[1], key[0]))
            cell.first_byte_apart.observe(exchange.first_byte - exchange.started)

    def add_exemplar(self, key: Key, exemplar: Exemplar) -> None:
        """Keep ``exemplar`` for the bucket of the duration histogram its value falls into."""
        if key in self._known:
            bucket = bisect_left(DURATION_BOUNDS, exemplar[0])
            self.exemplars[_duration_labels(key), bucket] = exemplar

    def _record_request_size(self, cell: _Cell, key: Key, size: int) -> None:
        if cell.request_size is None:
            cell.request_size = self._histogram(REQUEST_SIZE, (key[1], key[0]))
        cell.request_size.observe(size)

    def _record_chunks(self, cell: _Cell, key: Key, count: int) -> None:
        if cell.chunks is None:
            cell.chunks = self._number(CHUNKS, (key[1], key[0]))
        cell.chunks.add(count)

    def _record_background(self, cell: _Cell, key: Key, seconds: float) -> None:
        if cell.background is None or cell.background_phase is None:
            cell.background = self._histogram(BACKGROUND, (key[1], key[0]))
            cell.background_phase = self._number(PHASE, (key[0], key[1], "background"))
        cell.background.observe(seconds)
        cell.background_phase.add(seconds)

    def _record_stream(self, cell: _Cell, key: Key, seconds: float) -> None:
        if cell.stream is None or cell.stream_outcome is None:
            cell.stream = self._histogram(STREAM_DURATION, (key[1], key[0]))
            cell.stream_outcome = self._number(OUTCOMES, (key[0], key[1], key[4]))
        cell.stream.observe(seconds)
        cell.stream_outcome.add()

    def _record_queue(self, exchange: HttpExchange) -> None:
        assert self._queue is not None and self._queue_from is not None
        seconds = self._queue_from(exchange.scope)
        if seconds is not None:
            self._queue.observe(max(0.0, seconds - (self.now() - exchange.started)))

    def _histogram(self, metric: Metric, labels: tuple[str, ...]) -> Histogram:
        return Histogram(self._slots, self._allocate(metric, labels), metric.bounds)

    def _number(self, metric: Metric, labels: tuple[str, ...]) -> Number:
        return Number(self._slots, self._allocate(metric, labels))

    def _allocate(self, metric: Metric, labels: tuple[str, ...]) -> int:
        """The slots of a series that several cells may share."""
        index = self._allocated.get((metric.name, labels))
        if index is None:
            index = self._allocated[metric.name, labels] = self._page.allocate(metric, labels)
        return index

    def _duration_apart(self, key: Key) -> Histogram:
        """A duration histogram of its own, whose buckets are the outcome's counter as well."""
        base = self._allocate(DURATION, _duration_labels(key))
        self._page.lay(OUTCOMES, (key[0], key[1], key[4]), (base, _BUCKETS_OF_DURATION[1]))
        return Histogram(self._slots, base, DURATION_BOUNDS)

    def _cell(self, key: Key) -> _Cell | None:
        route, method, _, _, outcome = key
        by_route = (method, route)
        try:
            block = self._page.allocate_block(_BLOCK)

            def lay(metric: Metric, labels: tuple[str, ...], *runs: tuple[int, int]) -> None:
                self._page.lay(metric, labels, *((block + first, count) for first, count in runs))

            lay(DURATION, _duration_labels(key), _BUCKETS_OF_DURATION, _SUM_OF_DURATION)
            lay(FIRST_BYTE, by_route, _BUCKETS_OF_DURATION, _SUM_OF_DURATION)
            lay(OUTCOMES, (route, method, outcome), _BUCKETS_OF_DURATION)
            lay(RESPONSE_SIZE, by_route, _BUCKETS_OF_SIZE, _SUM_OF_SIZE)
            lay(LONGEST_STEP, by_route, _BUCKETS_OF_STEP, _SUM_OF_STEP)
            lay(PHASE, (route, method, "loop_run"), _LOOP_RUN)
        except PageFullError:
            return None
        return _Cell(block)

    def _overflow_cell(self) -> _Cell | None:
        return self._cell((OVERFLOW, OTHER, 0, OVERFLOW, OVERFLOW))


def _duration_labels(key: Key) -> tuple[str, str, str, str]:
    route, method, status, error_type, _ = key
    return (method, route, str(status) if status else "", error_type)


class HttpExchange(Exchange):
    """One HTTP request on its way through the app."""

    __slots__ = ("_held_up", "_receive", "_resolver", "_send", "bytes_received", "bytes_sent",
                 "chunks", "disconnected", "duration", "first_byte", "head", "is_stream",
                 "last_byte", "loop_run_until_last_byte", "recorder", "root_path", "span",
                 "status")  # fmt: skip

    chunks: int
    """Body messages before the last one."""
    duration: float
    """Set when the exchange finishes, like ``loop_run_until_last_byte``."""
    loop_run_until_last_byte: float
    head: Message | None
    """The message that started the response."""
    span: object

    def __init__(
        self,
        recorder: RequestRecorder,
        resolver: Resolver,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self.recorder = recorder
        self._resolver = resolver
        self._receive = receive
        self._send = send
        self.scope = scope
        self.root_path: str = scope["root_path"] if "root_path" in scope else ""
        """As the server gave it: what it grows by while routing was a mount."""
        self.status = self.bytes_received = self.bytes_sent = self.chunks = 0
        self.first_byte = self.last_byte = self.loop_run = self.longest_step = 0.0
        self.disconnected = self.is_stream = self._held_up = False
        self.head = self.pending = self.span = self.coroutine = None
        self.now = now = recorder.now
        scope[SCOPE_KEY] = self
        recorder.active.add(self)
        self.started = self.step_started = now()
        if recorder.tracer is not None:
            self._begin_span(recorder.tracer)

    def _begin_span(self, tracer: Tracer) -> None:
        try:
            self.span = tracer.begin(self)
        except Exception as error:
            self.recorder.faults.report("traces", error)

    def send(self, message: Message) -> Awaitable[None]:
        """Pass ``message`` to the server and note what it says.

        A plain function that returns the server's own awaitable: no message costs a coroutine of
        ours. Whether the last one went out at once or had to wait is looked up afterwards.
        """
        try:
            kind = message["type"]
            if kind == "http.response.body":
                # Written for speed: `in` and a subscript cost less than a call of `get`.
                if "body" in message:
                    self.bytes_sent += len(message["body"])
                if not self.first_byte:
                    self.first_byte = self.now()
                if "more_body" not in message or not message["more_body"]:
                    return self._send_last(message)
                if not self.chunks:
                    self.is_stream = self._is_stream()
                self.chunks += 1
            elif kind == "http.response.start":
                self.status = message["status"]
                self.head = message
            elif kind == "http.response.pathsend":
                self.first_byte = self.now()
                self.bytes_sent = int(_header(self.head, b"content-length") or 0)
                return self._send_last(message)
        except (KeyError, TypeError, ValueError, AttributeError):
            self.recorder.malformed += 1  # the server will say what is wrong with the message
        return self._send(message)

    def _send_last(self, message: Message) -> Awaitable[None]:
        sent = self._send(message)
        if not self.last_byte:
            # As good as another clock reading, unless chunks went before.
            self.last_byte = self.now() if self.chunks else self.first_byte
            self.pending = sent
        return sent

    def settle(self, moment: float, step_started: float) -> None:
        """The last byte is gone when the server has taken it, not when the app offered it.

        A server that could take it at once ended its ``send`` within the step that made it. One
        that had to wait (back-pressure) has ended it in the first step that finds it ended, and
        being done waiting is what that step began with.
        """
        if getattr(self.pending, "cr_frame", None) is not None:
            self._held_up = True
            return
        self.pending = None
        if self._held_up:
            self.last_byte = step_started
        after = moment - max(self.last_byte, step_started)
        self.loop_run_until_last_byte = self.loop_run - after

    def _is_stream(self) -> bool:
        return _header(self.head, b"content-type").startswith(self.recorder.stream_types)

    async def receive(self) -> Message:
        """Pass on what the server has and count the body's bytes."""
        message = await self._receive()
        body = message.get("body")
        if body:
            self.bytes_received += len(body)
        elif message["type"] == "http.disconnect" and not self.last_byte:
            self.disconnected = True
        return message

    def finish(self, error: BaseException | None) -> None:  # noqa: C901
        # One long function, because each call it made would cost every request a tenth of what
        # all of it does.
        recorder = self.recorder
        recorder.active.discard(self)
        try:
            ended = self.now()
            scope = self.scope
            if SCOPE_KEY in scope:
                del scope[SCOPE_KEY]
            loop_run = self.loop_run
            step_started = self.step_started
            if step_started:
                held = ended - step_started
                loop_run += held
                self.loop_run = loop_run
                if held > self.longest_step:
                    self.longest_step = held
            pending = self.pending
            if pending is not None:
                if self._held_up or not _is_done(pending):
                    self.settle(ended, step_started)
                    if error is not None and self._held_up:
                        self.last_byte = 0.0  # what ended was the attempt
                else:
                    self.loop_run_until_last_byte = loop_run - (ended - self.last_byte)
            last_byte = self.last_byte
            if last_byte:
                self.duration = last_byte - self.started
            else:
                self.duration = ended - self.started
                self.loop_run_until_last_byte = loop_run
            status = self.status
            method = scope["method"]
            if method not in METHODS:
                method = OTHER
            route = self._resolver.resolve(scope, self.root_path, status)
            if error is None and last_byte and status < 500 and not self.client_left():
                key: Key = (route, method, status, "", OK)
            else:
                key = self._unhappy_key(route, method, error)
            recorder.record(self, key, ended)
            if self.span is not None:
                self._end_span(ended, key)
            recorder.until_sample -= 1
            if not recorder.until_sample:
                recorder.until_sample = SAMPLE
                recorder.overhead += (self.now() - ended) * SAMPLE
        except Exception as fault:
            recorder.failed(fault)

    def _end_span(self, ended: float, key: Key) -> None:
        tracer = self.recorder.tracer
        if tracer is not None:
            tracer.end(self.span, self, ended, key)
            ids = tracer.exemplar(self.span)
            if ids is not None and not self.is_stream:
                self.recorder.add_exemplar(key, (self.duration, ended, *ids))

    def _unhappy_key(self, route: str, method: str, error: BaseException | None) -> Key:
        outcome = self._outcome(error)
        status = self.status
        if outcome == OK:
            return (route, method, status, "", OK)
        if outcome != ERROR:
            return (route, method, status, outcome, outcome)
        if error is not None:
            return (route, method, status or 500, _type_name(error), ERROR)
        if self.last_byte:
            return (route, method, status, str(status), ERROR)
        return (route, method, status or 500, "incomplete_response", ERROR)

    def _outcome(self, error: BaseException | None) -> str:
        if self.client_left() or _is_client_disconnect(error):
            return LEFT_MID_STREAM if self.status else LEFT_EARLY
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


def _type_name(error: BaseException) -> str:
    """The exception's class as OpenTelemetry wants ``error.type``: qualified, unless built in."""
    kind = type(error)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _is_client_disconnect(error: BaseException | None) -> bool:
    """Starlette's way of telling an app that its client left; matched by name, not by import."""
    return error is not None and type(error).__name__ == "ClientDisconnect"
