"""Task health, driven by real tasks and coroutines that come to nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
import time
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest

from loopscope import Loopscope
from loopscope.agent import stop_agent
from loopscope.core.budget import OVERFLOW
from loopscope.core.clock import Clock
from loopscope.core.page import Page, PageReader
from loopscope.sources import tasks
from loopscope.sources.tasks import ALIVE, NEVER_AWAITED, NEVER_RETRIEVED, TasksSource
from tests.harness import call, published

pytestmark = pytest.mark.anyio

Handled = list[dict[str, Any]]


@pytest.fixture
def page() -> Page:
    return Page.anonymous(Clock(), capacity=1 << 18)


@pytest.fixture
def source(page: Page) -> Iterator[TasksSource]:
    source = TasksSource(page)
    source.start()
    yield source
    source.stop()


@pytest.fixture
def warned() -> Iterator[list[warnings.WarningMessage]]:
    """Every warning of this test, kept instead of failing it."""
    with warnings.catch_warnings(record=True) as kept:
        warnings.simplefilter("always")
        yield kept


def counts(page: Page, name: str) -> dict[str, float]:
    """A metric's values above zero, by label."""
    reader = PageReader()
    reader.update(page.view)
    found: dict[str, float] = {}
    for series in reader.series:
        value = page.slots[series.runs[0][0]]
        if series.metric.name == name and value:
            found[series.labels[0]] = found.get(series.labels[0], 0.0) + value
    return found


@contextmanager
def handler_set() -> Iterator[Handled]:
    """A service's own exception handler on the running loop, and what it was given."""
    handled: Handled = []
    loop = asyncio.get_running_loop()
    before = loop.get_exception_handler()
    loop.set_exception_handler(lambda _, context: handled.append(context))
    try:
        yield handled
    finally:
        loop.set_exception_handler(before)


async def waiting() -> None:
    await asyncio.sleep(3600)


async def failing() -> None:
    await asyncio.sleep(0)
    raise LookupError("deliberate")


async def failing_at_once() -> None:
    raise LookupError("deliberate")


async def forgotten() -> None:
    """Never to be awaited."""


def forget() -> None:
    forgotten()  # type: ignore[unused-coroutine]


FORGETS_AT = forget.__code__.co_firstlineno + 1


async def cancel(started: list[asyncio.Task[None]]) -> None:
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)


async def fail_unheard(coroutine: Callable[[], Any] = failing) -> None:
    """A task fails and is freed, its exception never asked for."""
    task = asyncio.create_task(coroutine())
    while not task.done():
        await asyncio.sleep(0)
    del task
    gc.collect()


async def test_tasks_alive_are_counted_by_coroutine(page: Page, source: TasksSource) -> None:
    """Three waiting tasks are three of their coroutine, read from another thread."""
    source.watch(asyncio.get_running_loop())
    started = [asyncio.create_task(waiting()) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.to_thread(source.refresh)
    assert counts(page, ALIVE.name)["waiting"] == 3
    assert sum(counts(page, ALIVE.name).values()) == len(asyncio.all_tasks())
    await cancel(started)


async def test_done_tasks_are_not_alive(page: Page, source: TasksSource) -> None:
    """Tasks that are done, though somebody keeps them, are no longer counted: zero, not stale."""
    source.watch(asyncio.get_running_loop())
    started = [asyncio.create_task(waiting()) for _ in range(3)]
    await asyncio.sleep(0)
    source.refresh()
    await cancel(started)
    source.refresh()
    assert "waiting" not in counts(page, ALIVE.name)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
async def test_tasks_that_ended_in_their_eager_start_crash_nothing(
    page: Page, source: TasksSource
) -> None:
    """Such tasks have no coroutine any more, and asking for it by get_coro() was fatal once."""
    loop = asyncio.get_running_loop()
    source.watch(loop)
    with handler_set():
        eagerly: Any = asyncio.Task
        make = partial(eagerly, loop=loop, eager_start=True)
        done = [make(forgotten()) for _ in range(3)]
        failed = make(failing_at_once())
        source.refresh()
        assert all(task.done() for task in (*done, failed))
        del failed
        gc.collect()
    source.refresh()
    assert "forgotten" not in counts(page, ALIVE.name)
    assert counts(page, NEVER_RETRIEVED.name) == {"failing_at_once": 1}


async def test_other_loops_tasks_are_not_counted(page: Page, source: TasksSource) -> None:
    """Only loops the source was told of count: this one's tasks do not."""
    other = asyncio.new_event_loop()
    try:
        source.watch(other)
        source.refresh()
        assert counts(page, ALIVE.name) == {}
    finally:
        source.stop()
        other.close()


async def test_names_beyond_the_budget_share_a_series(
    page: Page, source: TasksSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commonest coroutines keep their name, the others add up in the overflow."""
    monkeypatch.setattr(tasks, "_MOST_NAMES", 2)
    source = TasksSource(page)
    source.watch(asyncio.get_running_loop())

    def named(name: str) -> asyncio.Task[None]:
        coroutine: Any = waiting()
        coroutine.__qualname__ = name
        return asyncio.create_task(coroutine)

    started = [named(name) for name in [*5 * ["often"], *4 * ["twice"], "rare", "rarer", "rarest"]]
    await asyncio.sleep(0)
    for _ in range(2):
        source.refresh()
        found = counts(page, ALIVE.name)
        assert (found["often"], found["twice"]) == (5, 4)
        assert found.keys() == {"often", "twice", OVERFLOW}
        assert found[OVERFLOW] == len(asyncio.all_tasks()) - 9
    await cancel(started)
    source.stop()


async def test_counting_gives_way_every_thousand_tasks(page: Page) -> None:
    """However many tasks there are, other threads get their turn."""
    breaths = 0

    def breathe() -> None:
        nonlocal breaths
        breaths += 1

    source = TasksSource(page, breathe)
    source.watch(asyncio.get_running_loop())
    started = [asyncio.create_task(waiting()) for _ in range(3000)]
    await asyncio.sleep(0)
    source.refresh()
    assert counts(page, ALIVE.name)["waiting"] == 3000
    assert breaths >= 3
    await cancel(started)
    source.stop()


@pytest.mark.real_time
async def test_tasks_are_freed_by_their_own_thread_while_they_are_counted(page: Page) -> None:
    """Tasks that come and go during a refresh neither disturb it nor end on its thread.

    All but one in a hundred: one that ends in the very moment it is looked at is freed there.
    """
    freed: Counter[int] = Counter()

    class Result:
        def __del__(self) -> None:
            freed[threading.get_ident()] += 1

    async def short() -> Result:
        await asyncio.sleep(0)
        return Result()

    def read_often() -> None:
        while not done:
            source.refresh()

    done = False
    source = TasksSource(page, lambda: time.sleep(0))
    source.watch(asyncio.get_running_loop())
    kept = [asyncio.create_task(waiting()) for _ in range(2000)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    reading = asyncio.create_task(asyncio.to_thread(read_often))
    try:
        for _ in range(200):
            await asyncio.gather(*[short() for _ in range(20)])
    finally:
        done = True
        sys.setswitchinterval(interval)
    await reading
    assert freed[threading.get_ident()] >= 0.99 * freed.total()
    await cancel(kept)
    source.stop()


async def test_a_task_that_fails_unheard_is_counted(page: Page, source: TasksSource) -> None:
    """Two unheard failures are two of their coroutine, and the service's handler has both."""
    source.watch(asyncio.get_running_loop())
    with handler_set() as handled:
        await fail_unheard()
        await fail_unheard()
    source.refresh()
    source.refresh()
    assert counts(page, NEVER_RETRIEVED.name) == {"failing": 2}
    assert [type(context["exception"]) for context in handled] == [LookupError, LookupError]


async def test_without_a_handler_asyncio_logs_as_ever(
    page: Page, source: TasksSource, caplog: pytest.LogCaptureFixture
) -> None:
    """The default handler writes the same record, from the same place, with us and without."""
    loop = asyncio.get_running_loop()
    with handler_set():
        loop.set_exception_handler(None)
        await fail_unheard()
        source.watch(loop)
        await fail_unheard()
    (without, with_us) = (r for r in caplog.records if r.name == "asyncio")
    assert with_us.getMessage().splitlines()[0] == "Task exception was never retrieved"
    for fact in ("levelno", "pathname", "lineno", "funcName", "msg"):
        ours, theirs = getattr(with_us, fact), getattr(without, fact)
        assert str(ours).split("name=")[0] == str(theirs).split("name=")[0]
    assert with_us.levelno == logging.ERROR
    source.refresh()
    assert counts(page, NEVER_RETRIEVED.name) == {"failing": 1}


async def test_handlers_are_the_services_own(page: Page, source: TasksSource) -> None:
    """What was set is what is found; one set later gets everything and costs no count."""
    loop = asyncio.get_running_loop()
    with handler_set() as first:
        handler = loop.get_exception_handler()
        source.watch(loop)
        assert loop.get_exception_handler() is handler
        await fail_unheard()
        with handler_set() as second:
            await fail_unheard()
        context = {"message": "something else", "extra": object()}
        loop.call_exception_handler(context)
        assert first[-1] is context
    assert (len(first), len(second)) == (2, 1)
    source.refresh()
    assert counts(page, NEVER_RETRIEVED.name) == {"failing": 2}


async def test_a_handler_that_raises_is_treated_as_ever(
    source: TasksSource, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken handler is for asyncio to deal with; nothing gets out of the call."""
    loop = asyncio.get_running_loop()

    def broken(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise RuntimeError("broken handler")

    source.watch(loop)
    with handler_set():
        loop.set_exception_handler(broken)
        await fail_unheard()
    assert "Unhandled error in exception handler" in caplog.text


async def test_what_is_heard_or_no_task_is_not_counted(page: Page, source: TasksSource) -> None:
    """An awaited failure, a bare future's, a cancelled task and other reports count nothing."""
    loop = asyncio.get_running_loop()
    source.watch(loop)
    with handler_set() as handled:
        with suppress(LookupError):
            await asyncio.create_task(failing())
        future = loop.create_future()
        future.set_exception(LookupError("deliberate"))
        del future
        cancelled = asyncio.create_task(waiting())
        await cancel([cancelled])
        loop.call_exception_handler({"message": "exception was never retrieved"})
        loop.call_exception_handler({"future": cancelled, "message": "else"})
        loop.call_exception_handler({"future": cancelled})
        gc.collect()
    assert len(handled) == 4
    source.refresh()
    assert counts(page, NEVER_RETRIEVED.name) == {}


async def test_watching_a_loop_twice_is_once(page: Page, source: TasksSource) -> None:
    """Told of the same loop again, the source counts each failure once."""
    loop = asyncio.get_running_loop()
    source.watch(loop)
    source.watch(loop)
    with handler_set():
        await fail_unheard()
    source.refresh()
    assert counts(page, NEVER_RETRIEVED.name) == {"failing": 1}


async def test_stopping_leaves_the_loop_as_it_was(page: Page, source: TasksSource) -> None:
    """After stop the loop has no attribute of ours, and failures are not counted."""
    loop = asyncio.get_running_loop()
    before = dict(vars(loop))
    source.watch(loop)
    assert vars(loop) != before
    source.stop()
    assert vars(loop).keys() == before.keys()
    with handler_set() as handled:
        await fail_unheard()
    assert len(handled) == 1
    source.refresh()
    assert counts(page, NEVER_RETRIEVED.name) == {}


async def test_others_who_wrap_the_same_method_are_left_in_place(
    page: Page, source: TasksSource
) -> None:
    """Wrapped before us: called, and there again afterwards. Wrapped around us: left alone."""
    loop = asyncio.get_running_loop()
    original = loop.call_exception_handler
    calls: list[str] = []

    def inner(context: dict[str, Any]) -> str:
        calls.append("inner")
        original(context)
        return "a mock would"

    def outer(context: dict[str, Any]) -> None:
        calls.append("outer")
        ours(context)

    attributes: dict[str, Any] = vars(loop)
    try:
        attributes["call_exception_handler"] = inner
        source.watch(loop)
        source.stop()
        assert vars(loop)["call_exception_handler"] is inner
        source.watch(loop)
        ours = attributes["call_exception_handler"]
        attributes["call_exception_handler"] = outer
        source.stop()
        assert vars(loop)["call_exception_handler"] is outer
        source.watch(loop)
        assert vars(loop)["call_exception_handler"] is outer
        with handler_set() as handled:
            await fail_unheard()
    finally:
        del attributes["call_exception_handler"]
    assert calls == ["outer", "inner"]
    assert len(handled) == 1
    source.refresh()
    assert counts(page, NEVER_RETRIEVED.name) == {"failing": 1}


async def test_a_fault_in_the_handler_is_raised_by_refresh_only(
    source: TasksSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service's handler is called all the same; the next refresh tells, once."""

    def broken(context: object) -> str:
        raise RuntimeError("ours")

    monkeypatch.setattr(tasks, "_failed_coroutine", broken)
    source.watch(asyncio.get_running_loop())
    with handler_set() as handled:
        await fail_unheard()
    assert len(handled) == 1
    with pytest.raises(RuntimeError, match="ours"):
        source.refresh()
    source.refresh()


def test_a_loop_without_room_for_attributes_is_a_fault_once(source: TasksSource) -> None:
    """Watching it raises nothing; refresh does, the first time, and goes on counting."""

    class Bare:
        __slots__ = ("__weakref__",)

    loop: Any = Bare()
    source.watch(loop)
    source.watch(loop)
    with pytest.raises(TypeError):
        source.refresh()
    source.refresh()
    source.stop()


def test_a_loop_that_is_gone_is_forgotten(page: Page, source: TasksSource) -> None:
    """The source keeps no loop alive."""
    loop = asyncio.new_event_loop()
    gone = weakref.ref(loop)
    source.watch(loop)
    loop.close()
    del loop
    gc.collect()
    assert gone() is None
    source.refresh()


def test_a_forgotten_coroutine_is_counted_by_name(
    page: Page, source: TasksSource, warned: list[warnings.WarningMessage]
) -> None:
    """Each coroutine freed unstarted counts, also where a warning is shown once only."""
    warnings.simplefilter("once")
    for _ in range(3):
        forget()
    source.refresh()
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"forgotten": 3}
    assert len(warned) == 1


def test_a_forgotten_coroutine_is_located_where_origins_are_tracked(
    page: Page, source: TasksSource, warned: list[warnings.WarningMessage]
) -> None:
    """With origin tracking on, the label is the line that called the coroutine function."""
    sys.set_coroutine_origin_tracking_depth(3)
    try:
        forget()
    finally:
        sys.set_coroutine_origin_tracking_depth(0)
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {
        f"tests/sources/test_tasks.py:{FORGETS_AT} forget": 1
    }


def test_without_a_working_directory_files_keep_their_whole_name(
    page: Page, source: TasksSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry of sys.path that is no path costs the short name, not the count."""
    monkeypatch.setattr(sys, "path", [*sys.path, 3])
    source._unawaited.add(("/srv/app.py", 7, "serve"))
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"/srv/app.py:7 serve": 1}


def facts(warning: warnings.WarningMessage) -> tuple[object, ...]:
    return (
        str(warning.message),
        warning.category,
        warning.filename,
        warning.lineno,
        warning.line,
        type(warning.source),
    )


@pytest.mark.parametrize("depth", [0, 2])
def test_the_warning_is_the_same_as_without_us(
    page: Page, warned: list[warnings.WarningMessage], depth: int
) -> None:
    """Text, category, file, line and source: the user's line is blamed, not one of ours."""

    def warn() -> None:
        sys.set_coroutine_origin_tracking_depth(depth)
        try:
            forget()
        finally:
            sys.set_coroutine_origin_tracking_depth(0)

    source = TasksSource(page)
    warn()
    source.start()
    warn()
    source.stop()
    without, with_us = warned
    assert facts(with_us) == facts(without)
    assert (with_us.filename, with_us.lineno) == (__file__, FORGETS_AT)


@pytest.mark.parametrize("action", ["error", "ignore", "default", "module", "once"])
def test_filters_do_what_they_did(page: Page, monkeypatch: pytest.MonkeyPatch, action: Any) -> None:
    """Filters for the user's module decide as before, also those that make the warning an error."""
    unraisable: list[tuple[object, str]] = []
    monkeypatch.setattr(
        sys,
        "unraisablehook",
        lambda found: unraisable.append((found.exc_type, str(found.exc_value))),
    )

    def observe() -> tuple[int, list[tuple[object, str]]]:
        unraisable.clear()
        globals().pop("__warningregistry__", None)
        with warnings.catch_warnings(record=True) as kept:
            warnings.simplefilter("ignore")
            warnings.filterwarnings(action, module=__name__.replace(".", r"\."))
            for _ in range(3):
                forget()
            filters = list(warnings.filters)
        assert filters[0][0] == action
        return len(kept), list(unraisable)

    without = observe()
    source = TasksSource(page)
    source.start()
    try:
        assert observe() == without
    finally:
        source.stop()
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"forgotten": 3}
    if action == "error":
        assert len(without[1]) == 3


def test_coroutines_forgotten_in_cycles_and_threads_are_counted(
    page: Page, source: TasksSource, warned: list[warnings.WarningMessage]
) -> None:
    """Whichever thread frees it, also within a collection: counted, and warned of."""

    def in_a_cycle() -> None:
        knot: list[object] = [forgotten()]
        knot.append(knot)
        del knot
        gc.collect()

    thread = threading.Thread(target=in_a_cycle)
    thread.start()
    thread.join()
    in_a_cycle()
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"forgotten": 2}
    assert len(warned) == 2


def test_more_than_can_be_kept_is_still_counted(
    page: Page, source: TasksSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events beyond the bound lose their name, not their number, and the source says how many."""
    monkeypatch.setattr(tasks, "_MOST_EVENTS", 3)
    for _ in range(2):
        for _ in range(5):
            source._unawaited.add("forgotten")
        source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"forgotten": 6, OVERFLOW: 4}
    assert source.folded == 4


def test_locations_beyond_the_budget_are_folded(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The total stays right, and what lost its name is counted."""
    monkeypatch.setattr(tasks, "_MOST_NAMES", 1)
    source = TasksSource(page)
    for name in ("first", "first", "second", "second", "third"):
        source._unawaited.add(name)
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"first": 2, OVERFLOW: 3}
    assert source.folded == 3


def test_a_full_page_costs_the_counts_only(
    warned: list[warnings.WarningMessage],
) -> None:
    """Where there is no room for another series nothing fails."""
    source = TasksSource(Page.anonymous(Clock(), capacity=512))
    source.start()
    try:
        forget()
        source.refresh()
    finally:
        source.stop()
    assert len(warned) == 1


def test_a_fault_in_the_hook_does_not_cost_the_warning(
    page: Page,
    source: TasksSource,
    warned: list[warnings.WarningMessage],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user is warned all the same; the next refresh tells of the fault, once."""

    def broken(coroutine: object) -> str:
        raise RuntimeError("ours")

    monkeypatch.setattr(tasks, "_qualified_name", broken)
    forget()
    assert len(warned) == 1
    with pytest.raises(RuntimeError, match="ours"):
        source.refresh()
    source.refresh()


UNAWAITED = "_warn_unawaited_coroutine"


def test_starting_twice_is_one_hook(
    page: Page, source: TasksSource, warned: list[warnings.WarningMessage]
) -> None:
    """Started twice, each coroutine counts once, and one stop restores what was there."""
    source.start()
    forget()
    source.stop()
    source.stop()
    forget()
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"forgotten": 1}
    assert len(warned) == 2
    assert getattr(warnings, UNAWAITED).__module__ == "warnings"


def test_stopping_leaves_others_hooks_in_place(
    page: Page, warned: list[warnings.WarningMessage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who hooked in after us is not taken out, and what they call still warns."""
    seen: list[object] = []
    original = getattr(warnings, UNAWAITED)
    source = TasksSource(page)
    source.start()
    ours: Any = getattr(warnings, UNAWAITED)

    def others(coroutine: Any) -> None:
        seen.append(coroutine.__qualname__)
        ours(coroutine)

    setattr(warnings, UNAWAITED, others)
    try:
        source.stop()
        assert getattr(warnings, UNAWAITED) is others
        source.start()
        forget()
    finally:
        setattr(warnings, UNAWAITED, original)
    assert seen == ["forgotten"]
    assert len(warned) == 1
    source.refresh()
    assert counts(page, NEVER_AWAITED.name) == {"forgotten": 1}


def test_an_interpreter_without_the_hook_is_left_alone(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the function does not exist none is put there."""
    with monkeypatch.context() as patch:
        patch.delattr(warnings, UNAWAITED)
        source = TasksSource(page)
        source.start()
        source.stop()
        assert not hasattr(warnings, UNAWAITED)


async def test_a_services_tasks_are_published(warned: list[warnings.WarningMessage]) -> None:
    """The agent watches the loop of its first request, and lets go of it when it stops."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        started.append(asyncio.create_task(waiting()))
        forget()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    started: list[asyncio.Task[None]] = []
    loop = asyncio.get_running_loop()
    before = vars(loop).keys()
    app = Loopscope(application)
    with handler_set():
        for _ in range(2):
            await call(app)
        await fail_unheard()
    await asyncio.sleep(0)

    async def scrape(name: str, **labels: str) -> float:
        return await asyncio.to_thread(published, name, **labels)

    assert await scrape(ALIVE.name, coroutine="waiting") == 2
    assert await scrape(NEVER_AWAITED.name, location="forgotten") == 2
    assert await scrape(NEVER_RETRIEVED.name, coroutine="failing") == 1
    await cancel(started)
    stop_agent()
    assert vars(loop).keys() == before
