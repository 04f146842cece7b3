"""The task factory: tasks are counted as they are made, and those of a request join its ledger.

A loop has room for one factory, and a service may have set its own before or may set it later (an
eager one, say). So ours composes: it hands on to whatever the service has set, and the loop's
``set_task_factory`` and ``get_task_factory``, as attributes of that very loop, go on speaking of
the service's alone.

An eager factory is the exception: ``get_task_factory`` answers with another one, which makes the
same tasks. For anyio, when it finds an eager factory, takes the type of task out of it and makes
its tasks without asking the loop (they must not start eagerly), and Starlette's BaseHTTPMiddleware
runs whole applications in such tasks.

Some versions of asyncio (Python 3.13.0, for one) give every task that a factory has made the name
it was asked for, be that None: with a factory of ours, unnamed tasks would all be called "None".
There the loop's ``create_task`` is ours as well, for tasks without a name.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from contextvars import Context
from types import CoroutineType
from typing import Any

from loopscope.core.histogram import Number
from loopscope.core.metric import Metric
from loopscope.core.page import Page
from loopscope.sources.chores import CHORES
from loopscope.sources.ledger import CURRENT, claimed, current

CREATED = Metric(
    "asyncio_tasks_created_total",
    "counter",
    "Tasks made on the event loops that serve requests.",
)

METRICS = (CREATED,)

Loop = asyncio.AbstractEventLoop
Factory = Callable[..., Any]

_Task: Factory = asyncio.Task
_SET = "set_task_factory"
_GET = "get_task_factory"
_CREATE = "create_task"


class FactorySource:
    """Puts a ``TaskFactory`` into every loop it is told to ``watch`` and publishes the counts.

    Only one thread at a time may call ``watch``, ``stop`` or ``refresh``.
    """

    def __init__(self, page: Page) -> None:
        self._created = Number(page.slots, page.allocate(CREATED))
        self._tallies: list[Tally] = []
        self._past = 0
        """Tasks of loops that are gone."""
        self._failure: Exception | None = None

    def watch(self, loop: Loop) -> None:
        """Take over on ``loop``; twice is once. Does not raise: ``refresh`` will."""
        try:
            if _factory_of(loop) is None:
                factory = TaskFactory(loop)
                factory.install()
                self._forget_the_gone()
                self._tallies.append(factory.tally)
        except Exception as error:  # a loop without room for attributes
            self._failure = error

    def stop(self) -> None:
        """Leave all loops as they were."""
        for tally in self._tallies:
            loop = tally.loop()
            factory = None if loop is None else _factory_of(loop)
            if factory is not None and factory.tally is tally:
                factory.remove()

    def refresh(self) -> None:
        """Publish the count. Raises what has failed since last time, once."""
        self._forget_the_gone()
        self._created.set(self._past + sum(tally.created for tally in self._tallies))
        failure, self._failure = self._failure, None
        for tally in self._tallies:
            failure, tally.failure = failure or tally.failure, None
        if failure is not None:
            raise failure

    def _forget_the_gone(self) -> None:
        self._past += sum(tally.created for tally in self._tallies if tally.loop() is None)
        self._tallies = [tally for tally in self._tallies if tally.loop() is not None]


class Tally:
    """What one loop's factory has to say. Outlives it."""

    __slots__ = ("created", "failure", "loop")

    def __init__(self, loop: Loop) -> None:
        self.created = 0
        """Tasks made so far; only the loop's thread adds."""
        self.failure: Exception | None = None
        """What went wrong last; the task was made all the same."""
        self.loop = weakref.ref(loop)


class TaskFactory:
    """Makes the tasks of one loop, from ``install`` to ``remove``."""

    def __init__(self, loop: Loop) -> None:
        self.tally = Tally(loop)
        self._inner: Factory | None = None  # the service's own
        self._shown: Factory | None = None  # what is said to be the service's own
        self._before: dict[str, Any] = {}  # somebody else's attributes of that very loop
        self._loop = loop
        self._set = loop.set_task_factory
        self._get: Callable[[], Any] = loop.get_task_factory
        self._create = loop.create_task

    def install(self) -> None:
        """Take the factory's place. Raises TypeError for a loop without room for that."""
        attributes = vars(self._loop)
        self._before = {name: attributes[name] for name in (_SET, _GET) if name in attributes}
        self._take(self._get())
        self._set(self.make)
        attributes[_SET] = self.set
        attributes[_GET] = self.get
        if _CREATE not in attributes and _names_what_has_no_name(self._loop):
            attributes[_CREATE] = self.create

    def remove(self) -> None:
        """Leave the loop as the service has set it, and to whoever came after us what is theirs."""
        attributes = vars(self._loop)
        for name, ours in ((_SET, self.set), (_GET, self.get), (_CREATE, self.create)):
            if attributes.get(name) == ours:
                del attributes[name]
                if name in self._before:
                    attributes[name] = self._before[name]
        if self._get() == self.make:
            self._set(self._inner)

    def set(self, factory: Factory | None) -> None:
        """``loop.set_task_factory``, with its errors."""
        if factory is not None and factory is self._shown:
            return  # what ``get`` said is put back
        self._set(factory)
        self._take(factory)
        self._set(self.make)

    def get(self) -> Factory | None:
        """``loop.get_task_factory``."""
        return self._shown

    def create(self, coroutine: Any, *, name: Any = None, context: Context | None = None) -> Any:
        """``loop.create_task`` of a loop that would call a task without a name "None"."""
        if name is not None or self._inner is not None or self._get() != self.make:
            return self._create(coroutine, name=name, context=context)
        loop: Any = self._loop
        loop._check_closed()  # noqa: SLF001
        if context is None:
            return self.make(loop, coroutine)
        return self.make(loop, coroutine, context=context)

    def make(self, loop: Loop, coroutine: Any, /, **options: Any) -> Any:
        """A task of ``coroutine``, for ``loop.create_task``."""
        if options:  # to hand on none at all costs as much as some
            coroutine = self._adopted(coroutine, options.get("context"))
            if self._inner is None:
                return _Task(coroutine, loop=loop, **options)
            return self._inner(loop, coroutine, **options)
        coroutine = self._adopted(coroutine)
        if self._inner is None:
            return _Task(coroutine, loop=loop)
        return self._inner(loop, coroutine)

    def _take(self, factory: Factory | None) -> None:
        self._inner = self._shown = factory
        make = _made_eagerly(factory)
        if make is not None:

            def adopting(coroutine: Any, **options: Any) -> Any:
                return make(self._adopted(coroutine, options.get("context")), **options)

            # through vars(), since Python 3.11 has no such thing
            self._shown = vars(asyncio)["create_eager_task_factory"](adopting)

    def _adopted(self, coroutine: Any, context: Context | None = None) -> Any:
        """``coroutine``, or what stands in for it as a part of the current request."""
        tally = self.tally
        tally.created += 1
        exchange = current() if context is None else claimed(context.get(CURRENT))
        if exchange is None:
            return coroutine
        kind: Any = type(coroutine)  # pyright: ignore[reportUnknownVariableType]
        if kind is CoroutineType:
            if CHORES and coroutine.cr_code in CHORES:
                return coroutine
        elif not _is_coroutine(coroutine):
            return coroutine
        try:
            return exchange.adopt(coroutine)
        except Exception as error:
            tally.failure = error
            return coroutine


def _is_coroutine(made_of: object) -> bool:
    """Tasks are made of other things as well, if only to find that this is an error."""
    return isinstance(made_of, Coroutine)


def _made_eagerly(factory: Any) -> Factory | None:
    """With what an eager factory makes its tasks; None if it is none."""
    eager: Any = vars(asyncio).get("eager_task_factory")
    code: object = getattr(factory, "__code__", None)
    if eager is None or code is not eager.__code__:
        return None
    make: Factory = factory.__closure__[0].cell_contents
    return make


class _Anybody:
    """A loop, its factory and its task, to see what a loop does with the name of a task."""

    name: object = ""

    def _check_closed(self) -> None: ...

    def _task_factory(self, *_: object) -> _Anybody:
        return self

    def set_name(self, name: object) -> None:
        self.name = name


def _names_what_has_no_name(loop: Loop) -> bool:
    """Whether a task made by a factory gets the name None where it was to get none."""
    create: Any = asyncio.BaseEventLoop.create_task
    if getattr(type(loop), _CREATE) is not create:
        return False
    anybody = _Anybody()
    create(anybody, None)
    return anybody.name is None


def _factory_of(loop: Loop) -> TaskFactory | None:
    """Ours, if it has taken over there."""
    owner: object = getattr(vars(loop).get(_SET), "__self__", None)
    return owner if isinstance(owner, TaskFactory) else None
