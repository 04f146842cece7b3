"""What is made of samples: which line is accused, and which is not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest

from loopscope.core.clock import Clock
from loopscope.core.page import Page
from loopscope.core.stacks import Stack, UserCode
from loopscope.core.stall import Stall
from loopscope.sources.cause import LoopRound, Oversleep
from loopscope.sources.evidence import Moment
from loopscope.sources.loop import LoopMonitor
from loopscope.sources.postmortem import Books, Postmortem, Round
from loopscope.sources.suspicion import Look, Running, Suspicion, Waiting

ON_TIME = Oversleep(0.0001, 0, 0.0)
LOOP = LoopRound(0.01, 0.01, 1)


class Scratch:
    """A loop nobody sends requests to."""

    def __init__(self, monitor: LoopMonitor) -> None:
        self.monitor = monitor

    def running(self) -> Running | None:
        return None

    def waiting(self) -> list[Waiting]:
        return []

    def label_of(self, waiting: Waiting) -> tuple[str, str]:
        return "", ""


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    page = Page.anonymous(Clock(), capacity=1 << 20)
    monitor = LoopMonitor(page, time.perf_counter, 0.05)
    monitor.has_selector = monitor.is_exact = True
    yield Scratch(monitor)
    page.close()


def function(name: str) -> CodeType:
    return compile("pass", f"/srv/app/{name}.py", "exec").replace(co_qualname=name)


HANDLER, PARSE, CHECK, TAIL = map(function, ("handler", "parse", "check", "tail"))


def at(*frames: tuple[CodeType, int]) -> Stack:
    return frames


def look(moment: float, stack: Stack, late: Oversleep = ON_TIME, *, cpu: float) -> Look:
    return Look(moment, stack, "step", None, Moment(moment, cpu, 0.0, 1, "R"), None, late)


def concluded(
    scratch: Scratch, looks: list[Look], *, until: float, cpu: float | None = None
) -> Stall:
    """The record of a stall that began at 0, during which the loop thread used ``cpu`` seconds."""
    suspicion = Suspicion(0.0, Moment(0.0, 0.0, 0.0, 0, "R"), {}, [], 0.005, "1", looks)
    rounds = [Round(each.at, each.late, LOOP) for each in looks]
    end = Moment(until, until if cpu is None else cpu, 0.0, 2, "R")
    postmortem = Postmortem(Clock(), UserCode(("/srv/app",)), lambda: ())
    return postmortem.conclude(scratch, suspicion, (0.0, until), Books(rounds, end, {}, None))


def test_a_sample_behind_the_gil_stands_for_the_time_it_was_waited_for(scratch: Scratch) -> None:
    """One sample right behind a C call outweighs those taken quickly in the tail after it."""
    kept = Oversleep(0.06, 12, 0.0)
    looks = [
        look(0.08, at((HANDLER, 3), (PARSE, 10)), kept, cpu=0.08),
        look(0.085, at((HANDLER, 4), (TAIL, 20)), cpu=0.085),
        look(0.09, at((HANDLER, 4), (TAIL, 20)), cpu=0.09),
    ]
    stall = concluded(scratch, looks, until=0.1)
    assert (stall.cause, stall.location) == ("cpu", "parse.py:10 parse")


def test_a_lone_sample_accuses_nobody_unless_it_was_kept_away(scratch: Scratch) -> None:
    """Where the loop was at one moment says little; where it was while it kept the GIL, much."""
    stack = at((HANDLER, 3), (PARSE, 10))
    stall = concluded(scratch, [look(0.05, stack, cpu=0.05)], until=0.06)
    assert (stall.cause, stall.location) == ("cpu", "")
    kept = Oversleep(0.03, 6, 0.0)
    stall = concluded(scratch, [look(0.055, stack, kept, cpu=0.055)], until=0.06)
    assert stall.location == "parse.py:10 parse"


def test_a_watchdog_that_wanted_for_a_cpu_was_not_kept_away(scratch: Scratch) -> None:
    """Late for want of a CPU, it sees where the loop went meanwhile, and that accuses nobody."""
    late = Oversleep(0.03, 1, 0.03)
    looks = [look(0.055, at((HANDLER, 3), (PARSE, 10)), late, cpu=0.055)]
    assert concluded(scratch, looks, until=0.06).location == ""


def test_helpers_that_take_turns_are_their_callers_doing(scratch: Scratch) -> None:
    """Where no function was there most of the time, the one below which it was spent is named."""
    turns = [(PARSE, 10), (CHECK, 20), (TAIL, 30)] * 4
    looks = [
        look(0.03 + n * 0.01, at((HANDLER, 7 if n % 4 else 8), inner), cpu=0.03 + n * 0.01)
        for n, inner in enumerate(turns)
    ]
    stall = concluded(scratch, looks, until=0.15)
    assert stall.location == "handler.py:7 handler"


def test_samples_that_share_nothing_accuse_nobody(scratch: Scratch) -> None:
    """Three functions with nothing in common, a third of the time each, are no culprit."""
    turns = [(PARSE, 10), (CHECK, 20), (TAIL, 30)] * 3
    looks = [look(0.03 + n * 0.01, at(each), cpu=0.03 + n * 0.01) for n, each in enumerate(turns)]
    assert concluded(scratch, looks, until=0.12).location == ""


def test_what_was_seen_after_the_end_does_not_count(scratch: Scratch) -> None:
    """A watchdog that has not heard yet that the stall is over looks once more, in vain."""
    stack = at((HANDLER, 3), (PARSE, 10))
    looks = [look(0.03 + n * 0.01, stack, cpu=0.03 + n * 0.01) for n in range(3)]
    late = [look(0.07 + n * 0.01, at((CHECK, 1)), cpu=0.06) for n in range(4)]
    stall = concluded(scratch, looks + late, until=0.06)
    assert stall.location == "parse.py:10 parse"
    assert stall.evidence["samples"] == 3


@pytest.mark.parametrize(("exact", "looks", "estimate"), [(True, 1, False), (True, 0, True)])
def test_a_beat_alone_is_an_estimate(
    scratch: Scratch, exact: bool, looks: int, estimate: bool
) -> None:
    """A loop in C tells its hold exactly if somebody looked, else only its late beat does."""
    scratch.monitor.has_selector, scratch.monitor.is_exact = False, exact
    seen: list[Any] = [look(0.05, at((PARSE, 10)), cpu=0.05)] * looks
    assert concluded(scratch, seen, until=0.06).is_estimate is estimate
