"""Task health: which tasks are alive, which failed unheard, which coroutines were never awaited.

*Alive* is counted when somebody reads, from the weak references asyncio keeps of its tasks.
``asyncio.all_tasks`` is the public way to them, but its strong references make the reader the last
owner of tasks that end meanwhile: with 50,000 tasks and 30,000 short ones a second, one in thirty
was freed, together with its result, on the scraping thread, and the loop was 8 ms late (p99)
instead of 1.5. Up to Python 3.13 it also starts over, up to a thousand times, when a task is made
while it looks. Copying the weak references is one step of the interpreter, and each is followed for
less than a microsecond. 10,000 tasks cost 5 ms of a thread that is not the loop's, in portions of
half a millisecond between which the GIL is handed over; so there is no cap. A task that was started
eagerly counts from its first wait on.

*Failed unheard*: a task that is freed with an exception nobody asked for calls its loop's
``call_exception_handler``. That method is wrapped on the watched loop itself: an attribute of the
instance, which uvloop's loops have room for too and C tasks look up. Exception handlers are not
touched: ``get_exception_handler`` says what the service set, setting another loses us nothing, and
whichever there is gets what it always got. A handler of our own would show and could be replaced;
a filter on asyncio's logger would see nothing where a service has a handler that does not log
there, and would have to read the coroutine's name out of a text. Whoever replaces the same
attribute later without calling ours takes the counting with it; we do not come back, for we cannot
know whether it does call ours, and would count twice.

*Never awaited*: the interpreter calls ``warnings._warn_unawaited_coroutine`` for each coroutine
that is freed unstarted, before any filter has its say. `_preceded` says how it is wrapped
without showing in the warning. Coroutines made in C (Cython's) and the methods of asynchronous
generators warn without it and are not counted.

Both happen in finalizers: in any thread, in the middle of anything, also within a collection. So
the hooks take no lock and write to no slot. They append to a deque, and ``refresh`` does the rest.

There is no count of tasks *created*. asyncio counts only tasks without a name of their own, nobody
but the next such task can read that count without taking a number, and a task factory belongs to
whoever needs one anyway. The highest "Task-123" alive is neither a total nor a bound worth a graph.
"""

from __future__ import annotations

import asyncio
import os
import sys
import warnings
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Any, cast

from loopscope.core.budget import OVERFLOW, Budget
from loopscope.core.histogram import Number
from loopscope.core.metric import Metric
from loopscope.core.page import Page

ALIVE = Metric(
    "asyncio_tasks",
    "gauge",
    "Tasks that are not done, on the event loops that serve requests, by the qualified name of "
    "their coroutine.",
    ("coroutine",),
)
NEVER_RETRIEVED = Metric(
    "asyncio_task_exceptions_never_retrieved_total",
    "counter",
    "Tasks that failed and were freed before anybody asked for their result, by the qualified name "
    "of their coroutine.",
    ("coroutine",),
)
NEVER_AWAITED = Metric(
    "python_coroutines_never_awaited_total",
    "counter",
    "Coroutines that were freed without ever having run, by the line that made them where the "
    "interpreter tracks that (sys.set_coroutine_origin_tracking_depth), else by qualified name.",
    ("location",),
)

METRICS = (ALIVE, NEVER_RETRIEVED, NEVER_AWAITED)

Loop = asyncio.AbstractEventLoop
Task = asyncio.Task[Any]
Event = str | tuple[str, int, str]
"""A coroutine's qualified name, or the file, line and function that made it."""

_MOST_NAMES = 100
"""Series of each metric; what comes later shares one more."""
_MOST_EVENTS = 4096
"""Events kept from one refresh to the next; of those beyond only the number is known."""
_PORTION = 1000
"""Tasks looked at before other threads are let run."""

_ON_EXCEPTION = "call_exception_handler"
_ON_UNAWAITED = "_warn_unawaited_coroutine"
_NO_NAME = "unknown"


class TasksSource:
    """Counts the tasks of the loops it is told to ``watch``, and what came to nothing.

    ``breathe`` is called every thousand tasks: a place to let other threads run. Only one thread at
    a time may call ``watch`` or ``refresh``.
    """

    def __init__(self, page: Page, breathe: Callable[[], None] = lambda: None) -> None:
        self._breathe = breathe
        self._loops: list[weakref.ref[Loop]] = []
        self._alive = _Names(page, ALIVE)
        self._failed = _Events(page, NEVER_RETRIEVED)
        self._unawaited = _Events(page, NEVER_AWAITED)
        self._original: Callable[[Any], None] | None = None
        self._hook: object = None
        self._failure: Exception | None = None

    @property
    def folded(self) -> int:
        """How many events did not get a series of their own."""
        return self._failed.folded + self._unawaited.folded

    def start(self) -> None:
        """Hook into the interpreter, where it has that hook; twice is once."""
        original = getattr(warnings, _ON_UNAWAITED, None)
        if self._hook is None and original is not None:
            note = partial(_note_unawaited, events=self._unawaited)
            interpreters_own = getattr(original, "__module__", "") in ("warnings", "_py_warnings")
            self._original = original
            self._hook = _preceded(original, note, hidden=interpreters_own)
            setattr(warnings, _ON_UNAWAITED, self._hook)

    def stop(self) -> None:
        """Take out our hooks, unless somebody has put theirs around them: those go on working."""
        if self._hook is not None and getattr(warnings, _ON_UNAWAITED, None) is self._hook:
            setattr(warnings, _ON_UNAWAITED, self._original)
            self._hook = None
        self._loops = [known for known in self._loops if not _unwrap(known(), self._failed)]

    def watch(self, loop: Loop) -> None:
        """Count ``loop``'s tasks from now on; twice is once. Does not raise: ``refresh`` will."""
        try:
            self._loops = [known for known in self._loops if known() is not None]
            if not any(known() is loop for known in self._loops):
                self._loops.append(weakref.ref(loop))
                _wrap(loop, self._failed)
        except Exception as error:  # a loop without room for attributes
            self._failure = error

    def refresh(self) -> None:
        """Bring all counts up to date. Raises what has failed in a hook since last time, once."""
        self._failed.fold()
        self._unawaited.fold()
        self._count_alive()
        for failure in (self._failure, self._failed.failure, self._unawaited.failure):
            if failure is not None:
                self._failure = self._failed.failure = self._unawaited.failure = None
                raise failure

    def _count_alive(self) -> None:
        loops = {loop for known in self._loops if (loop := known()) is not None}
        names: Counter[str] = Counter()
        references = _references(loops)
        for start in range(0, len(references), _PORTION):
            self._breathe()
            names.update(_alive(references[start : start + _PORTION], loops))
        self._alive.set_all(names)


class _Names:
    """The series of a metric with one label: as many as the budget allows, and the overflow."""

    def __init__(self, page: Page, metric: Metric) -> None:
        self._page = page
        self._metric = metric
        self._numbers: list[Number] = []
        self._budget: Budget[str, Number] = Budget(
            _MOST_NAMES, self._make, lambda: self._make(OVERFLOW)
        )
        self.folded = 0
        """How much was added to the overflow."""

    def add(self, name: str, amount: int) -> None:
        folded = self._budget.folded
        number = self._budget.admit(name)
        if number is not None:
            number.add(amount)
        if name == OVERFLOW or self._budget.folded > folded:
            self.folded += amount

    def set_all(self, counts: Counter[str]) -> None:
        """These are the values now, the largest first to get a series; all others are zero."""
        values: Counter[Number] = Counter()
        for name, count in counts.most_common():
            number = self._budget.admit(name)
            if number is not None:
                values[number] += count
        for number in self._numbers:
            number.set(values[number])

    def _make(self, name: str) -> Number:
        number = Number(self._page.slots, self._page.allocate(self._metric, (name,)))
        self._numbers.append(number)
        return number


class _Events:
    """What hooks have seen, for ``fold`` to count in the page. Any thread may ``add``, any time."""

    def __init__(self, page: Page, metric: Metric) -> None:
        self.failure: Exception | None = None
        """What went wrong in a hook last."""
        self._names = _Names(page, metric)
        self._seen: deque[Event] = deque()
        self._beyond = 0
        self._beyond_before = 0

    @property
    def folded(self) -> int:
        return self._names.folded

    def add(self, event: Event) -> None:
        """Keep ``event``. Without a lock: events beyond the bound may be counted a few short."""
        if len(self._seen) < _MOST_EVENTS:
            self._seen.append(event)
        else:
            self._beyond += 1

    def fold(self) -> None:
        """Count what was seen up to now."""
        seen = Counter([self._seen.popleft() for _ in range(len(self._seen))])
        for event, count in seen.items():
            self._names.add(_text(event), count)
        beyond = self._beyond
        if beyond > self._beyond_before:
            self._names.add(OVERFLOW, beyond - self._beyond_before)
            self._beyond_before = beyond


class _Unheard:
    """Notes what a loop's ``call_exception_handler`` is called with."""

    def __init__(self, loop: Loop, events: _Events) -> None:
        self.before = vars(loop).get(_ON_EXCEPTION)
        """Set on this very loop by somebody else."""
        self.events = events

    def note(self, context: dict[str, Any]) -> None:
        try:
            name = _failed_coroutine(context)
            if name is not None:
                self.events.add(name)
        except Exception as error:
            self.events.failure = error


def _wrap(loop: Loop, events: _Events) -> None:
    unheard = _Unheard(loop, events)
    original = loop.call_exception_handler
    native = not isinstance(getattr(original, "__func__", original), FunctionType)
    hook: Any = _preceded(original, unheard.note, hidden=native and unheard.before is None)
    hook.loopscope = unheard
    # through vars(), since a method is no attribute to assign to, as type checkers see it
    vars(loop)[_ON_EXCEPTION] = hook


def _unwrap(loop: Loop | None, events: _Events) -> bool:
    """Take our hook off; whether nothing of ours is left there."""
    attributes = getattr(loop, "__dict__", {})
    hook = attributes.get(_ON_EXCEPTION)
    unheard = vars(hook).get("loopscope") if hasattr(hook, "__dict__") else None
    if isinstance(unheard, _Unheard) and unheard.events is events:
        if unheard.before is None:
            del attributes[_ON_EXCEPTION]
        else:
            attributes[_ON_EXCEPTION] = unheard.before
        return True
    return hook is None


def _note_unawaited(coroutine: Any, events: _Events) -> None:
    try:
        origin: tuple[tuple[str, int, str], ...] | None = coroutine.cr_origin
        events.add(origin[0] if origin else _qualified_name(coroutine))
    except Exception as error:
        events.failure = error


def _preceded(
    original: Callable[[Any], Any], note: Callable[[Any], None], *, hidden: bool
) -> Callable[[Any], Any]:
    """Something to call like ``original`` that calls ``note`` before.

    ``hidden`` is for originals that ask who called them: the interpreter's warning names its
    caller's line, and filters go by that line's module; uvloop's log record, as C has no frames,
    names the next Python function further out. A function of ours in between would be taken for it.
    Calling a class calls two things, one after the other and from C: ``__new__``, which notes, and
    then ``__init__``, which is ``original`` itself, with nothing of ours on the stack. It has to
    return None, as both of those do; of others' functions one cannot know, and they have a frame.
    """

    def plain(argument: Any) -> Any:
        note(argument)
        return original(argument)

    def new(cls: type[object], argument: Any) -> object:
        note(argument)
        return object.__new__(cls)

    if not hidden:
        return plain
    noting: Any = type("noting", (), {"__new__": new, "__init__": staticmethod(original)})
    return cast("Callable[[Any], Any]", noting)


def _references(loops: set[Loop]) -> list[Callable[[], Task | None]]:
    """Weak references to all tasks that may be alive."""
    if sys.version_info >= (3, 14):  # the weak set has become a list in C, safe and quick to copy
        return [weakref.ref(task) for loop in loops for task in asyncio.all_tasks(loop)]
    name = "_scheduled_tasks" if sys.version_info >= (3, 12) else "_all_tasks"
    inside: set[weakref.ref[Task]] = getattr(asyncio.tasks, name).data  # the WeakSet's own set
    return list(inside)


def _alive(references: Iterable[Callable[[], Task | None]], loops: set[Loop]) -> list[str]:
    """The coroutines of those tasks that are not done, on ``loops``. Holds one task at a time."""
    names: list[str] = []
    for reference in references:
        task = reference()
        if task is not None and not task.done() and task.get_loop() in loops:
            names.append(_coroutine_of(task) or _NO_NAME)
    return names


def _failed_coroutine(context: Mapping[str, Any]) -> str | None:
    """The coroutine of a task whose exception was not retrieved; None if this is about another."""
    task, message = context.get("future"), context.get("message")
    # the message begins with the task's type
    unheard = isinstance(message, str) and message.endswith("exception was never retrieved")
    if not (unheard and _is_task(task)):
        return None
    name = _coroutine_of(task)
    if name is None:  # it began and ended eagerly; where the exception was let out knows as well
        traceback = getattr(context.get("exception"), "__traceback__", None)
        name = _NO_NAME if traceback is None else str(traceback.tb_frame.f_code.co_qualname)
    return name


def _is_task(future: object) -> bool:
    return isinstance(future, asyncio.Task)


def _coroutine_of(task: object) -> str | None:
    """The name of the task's coroutine; None if it has let go of it.

    Not by ``get_coro``: on a task that is done since its eager start it crashes the interpreter,
    https://github.com/python/cpython/issues/122332 (fixed in 3.12.5). This attribute is what
    asyncio's own ``repr`` goes by.
    """
    coroutine = getattr(task, "_coro", None)
    return None if coroutine is None else _qualified_name(coroutine)


def _qualified_name(coroutine: object) -> str:
    name = getattr(coroutine, "__qualname__", None)
    return name if isinstance(name, str) else type(coroutine).__qualname__


def _text(event: Event) -> str:
    """``app/report.py:41 build``, the file as seen from where modules come from."""
    if isinstance(event, str):
        return event
    file, line, function = event
    return f"{file.removeprefix(_folder_of_modules(file))}:{line} {function}"


def _folder_of_modules(file: str) -> str:
    """The entry of ``sys.path``, or the working directory, that ``file`` is below; "" if none."""
    try:
        folders = [f"{Path(entry).absolute()}{os.sep}" for entry in ("", *sys.path)]
    except (OSError, TypeError):  # the working directory is gone; an entry is no path
        return ""
    return max((folder for folder in folders if file.startswith(folder)), key=len, default="")
