"""What one look from outside says: whom to blame, and when nobody."""

from __future__ import annotations

import asyncio
import re
import selectors
import threading
from asyncio import base_events, events
from pathlib import Path

import pytest

from loopscope.core.stacks import UserCode
from loopscope.sentinel.pyspy import SeenFrame, SeenThread
from loopscope.sentinel.view import Books, View, viewed

LOOP, OTHER = 11, 12
HERE = str(Path(__file__).resolve())
COMPUTES = Books(computing=0.98, lasted=1.0)
SLEEPS = Books(computing=0.01, lasted=1.0)

RUNS = (
    SeenFrame("<module>", str(Path(HERE).parents[2] / "main.py"), 3),
    SeenFrame("Runner.run", asyncio.runners.__file__, 118),
    SeenFrame("BaseEventLoop._run_once", base_events.__file__, 1900),
)
POLLS = (*RUNS, SeenFrame("EpollSelector.select", selectors.__file__, 450))
STEP = (*RUNS, SeenFrame("Handle._run", events.__file__, 80))
REPORT = (SeenFrame("report", HERE, 20), SeenFrame("Report.total", HERE, 40))
MATCHES = (*STEP, *REPORT, SeenFrame("match", re.__file__, 166))
WORKS = (SeenFrame("Thread.run", threading.__file__, 9), SeenFrame("crunch", HERE, 7))


def thread(
    native_id: int,
    frames: tuple[SeenFrame, ...],
    *,
    owns_gil: bool = False,
    active: bool = True,
) -> SeenThread:
    return SeenThread("cruncher", native_id, owns_gil, active, frames)


def route_of(file: str, function: str, line: int) -> str:
    return "/report" if (file, function) == (HERE, "report") else ""


def seen(*threads: SeenThread, books: Books = SLEEPS) -> View:
    return viewed(threads, LOOP, books, UserCode(), route_of, 0.1)


def test_code_that_keeps_the_interpreter_is_blamed() -> None:
    """By the innermost line of the user's, with the route that it serves."""
    view = seen(thread(LOOP, MATCHES, owns_gil=True), thread(OTHER, WORKS), books=COMPUTES)
    assert view.cause == "cpu"
    assert view.location.endswith("test_view.py:40 Report.total")
    assert view.label.endswith("test_view.py Report.total")
    assert view.route == "/report"
    assert view.leaf.endswith("match")
    assert view.frames[-2] == view.location


def test_a_call_that_blocks_is_told_from_one_that_computes() -> None:
    """By what the kernel knows of the thread, whether it has let go of the interpreter or not."""
    for owns_gil in (False, True):
        view = seen(thread(LOOP, MATCHES, owns_gil=owns_gil, active=False), books=SLEEPS)
        assert (view.cause, view.route) == ("blocking_call", "/report")
        assert view.keeps_gil == owns_gil


@pytest.mark.parametrize(("books", "active"), [(SLEEPS, True), (COMPUTES, False)])
def test_what_comes_after_a_stall_is_innocent(books: Books, *, active: bool) -> None:
    """It blocked all along and computes now, or the other way round: so that was another line."""
    view = seen(thread(LOOP, MATCHES, owns_gil=True, active=active), books=books)
    assert (view.cause, view.location, view.route) == ("unknown", "", "")
    assert view.leaf.endswith("match")


@pytest.mark.parametrize("active", [True, False])
def test_without_books_the_line_that_is_seen_is_believed(*, active: bool) -> None:
    """There are none but on Linux."""
    view = seen(thread(LOOP, MATCHES, owns_gil=True, active=active), books=Books())
    assert view.location


def test_a_thread_that_takes_turns_with_the_loop_is_no_thief() -> None:
    """Each of two that compute has the interpreter half of the time, whoever is seen with it."""
    threads = thread(LOOP, MATCHES), thread(OTHER, WORKS, owns_gil=True)
    view = seen(*threads, books=Books(computing=0.5, lasted=1.0))
    assert (view.cause, view.thread, view.location) == ("unknown", "", "")


def test_a_thread_that_keeps_the_interpreter_is_named() -> None:
    """With its line; whatever the loop was at then is no culprit."""
    view = seen(thread(LOOP, MATCHES), thread(OTHER, WORKS, owns_gil=True))
    assert (view.cause, view.thread, view.native_id) == ("gil_contention", "cruncher", OTHER)
    assert view.thread_location.endswith("test_view.py:7 crunch")
    assert (view.location, view.route) == ("", "")


def test_a_thread_that_serves_a_route_is_told_with_it() -> None:
    """An endpoint that is no coroutine runs in a thread, and may keep the interpreter there."""
    view = seen(thread(LOOP, POLLS), thread(OTHER, (*WORKS, *REPORT), owns_gil=True))
    assert view.route == "/report"


def test_a_loop_that_polls_is_not_blamed() -> None:
    """It waits for the interpreter or a CPU, and the user's main module is on its stack."""
    view = seen(thread(LOOP, POLLS), thread(OTHER, WORKS))
    assert (view.cause, view.location, view.route) == ("unknown", "", "")


def test_a_thread_without_the_interpreter_that_computes_is_not_blamed_by_line() -> None:
    """It was on its way to the next line: what has been seen is of no certain moment."""
    assert seen(thread(LOOP, MATCHES), books=COMPUTES).cause == "unknown"


def test_starvation_accuses_nobody() -> None:
    """A thread that is not given a CPU is on some line all the same."""
    view = seen(thread(LOOP, MATCHES, owns_gil=True), books=Books(0.05, 0.9, 1.0))
    assert (view.cause, view.location) == ("starved", "")


def test_a_thread_that_would_hang_with_all_cpus_is_blamed_on_a_busy_machine() -> None:
    """It has used more than it may take although it had to wait."""
    view = seen(thread(LOOP, MATCHES, owns_gil=True), books=Books(0.4, 1.6, 2.0))
    assert (view.cause, view.route) == ("cpu", "/report")


def test_a_loop_whose_thread_is_gone_is_not_blamed() -> None:
    """Nothing is known of it."""
    assert seen(thread(OTHER, WORKS, owns_gil=True)) == View("unknown")


def test_books_are_the_difference_of_two_readings() -> None:
    """Where one of them is missing, nothing is known, and nobody is said to compute or starve."""
    assert Books.between((1.0, 5.0, 1), (1.5, 5.25, 3), 1.0) == Books(0.5, 0.25, 1.0)
    nothing = Books.between(None, (1.5, 5.2, 3), 1.0)
    assert not nothing.computes() and not nothing.starves(0.1)
