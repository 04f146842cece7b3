"""Verdicts on invented evidence: each figure that decides is moved across its line."""

from __future__ import annotations

import asyncio.base_events
import cmd
import pdb
import queue
import selectors
import subprocess
import threading
import types
from dataclasses import replace
from typing import Any

import pytest

from loopscope.core.stacks import Stack
from loopscope.sources.cause import Evidence, LoopRound, Oversleep, Sample, judge
from loopscope.sources.evidence import Moment

NOTHING = Moment(
    at=100.0,
    cpu=5.0,
    run_wait=1.0,
    runs=50,
    state="S",
    major_faults=3,
    throttled=2.0,
    suspended=7.0,
    own_cpu=0.1,
    own_run_wait=0.5,
    own_switches=1000,
)
ON_TIME = Oversleep(0.0002, 0, 0.0)
GIL_HELD = Oversleep(0.98, 190, 0.0)  # late, and asking for the GIL all the time
STOPPED = Oversleep(0.98, 1, 0.0)  # late, and asking for nothing


def code(filename: str, source: str = "pass") -> types.CodeType:
    return compile(source, filename, "exec")


def frames(*filenames: str) -> Stack:
    return tuple((code(filename), 1) for filename in filenames)


USER = frames("/srv/app/report.py")
LOCK = (*USER, (threading.Condition.wait.__code__, 355))


def samples(stack: Stack = USER, waits: str | None = None, count: int = 6) -> list[Sample]:
    """Samples of one callback, evenly spread over a second."""
    return [Sample((n + 1) / (count + 1), "step", stack, waits) for n in range(count)]


def stall(
    cpu: float | None = 0.0,
    run_wait: float | None = 0.0,
    runs: int | None = 2,
    *,
    state: str = "S",
    faults: int = 0,
    throttled: float = 0.0,
    suspended: float = 0.0,
    window: float = 1.0,
    **changes: Any,
) -> Evidence:
    """One second in which the loop thread slept and the watchdog was on time, unless changed."""
    start = NOTHING
    end = replace(
        start,
        at=start.at + window,
        cpu=_plus(start.cpu, cpu),
        run_wait=_plus(start.run_wait, run_wait),
        runs=None if runs is None else 50 + runs,
        state=state,
        major_faults=3 + faults,
        throttled=2.0 + throttled,
        suspended=7.0 + suspended,
    )
    evidence = Evidence(1.0, start, end, rounds=[ON_TIME] * 50, samples=samples())
    return replace(evidence, **changes)


def _plus(value: float | None, change: float | None) -> float | None:
    return None if value is None or change is None else value + change


def debugger(*inner: str) -> list[Sample]:
    return samples((*USER, *frames(pdb.__file__, *inner)))


def turns(*signatures: str) -> list[Sample]:
    return [Sample(n / 10, signature, USER) for n, signature in enumerate(signatures)]


IMPORTING = frames("<frozen importlib._bootstrap>", "/srv/app/slow.py")
LOOP = asyncio.base_events.__file__
UNDER_SUBPROCESS = (*USER, *frames(subprocess.__file__, selectors.__file__))
ACQUIRING = (*USER, (code("/srv/app/x.py", "lock.acquire()"), 1))
ANOTHER_LINE = (*USER, (code("/srv/app/x.py", "lock.acquire()\nsleep()"), 2))


@pytest.mark.parametrize(
    ("evidence", "cause", "confident"),
    [
        # blocking calls
        (stall(), "blocking_call", True),
        (stall(cpu=0.35), "blocking_call", True),
        (stall(samples=samples(waits="syscall 230")), "blocking_call", True),
        (stall(samples=samples(UNDER_SUBPROCESS)), "blocking_call", True),
        (stall(samples=samples(count=1)), "blocking_call", False),
        (stall(samples=[]), "blocking_call", False),
        (stall(faults=50), "blocking_call", False),
        (stall(window=0.3), "blocking_call", False),
        (stall(window=2.0), "blocking_call", False),
        (stall(run_wait=0.3), "blocking_call", False),
        # … with the GIL: one sample, right behind the call, is as good as many
        (stall(rounds=[GIL_HELD], samples=samples(count=1)), "blocking_call", True),
        (stall(rounds=[GIL_HELD], samples=samples(waits="futex")), "blocking_call", True),
        # … beside others: with the GIL, and without
        (stall(rounds=[GIL_HELD], others={7: 0.99}), "blocking_call", True),
        (stall(others={7: 0.99}), "blocking_call", True),
        (stall(runs=180, others={7: 0.99}), "blocking_call", True),
        # … many of them: the loop thread wakes up often, and that is not for the GIL
        (stall(runs=400, rounds=[ON_TIME] * 50 + [Oversleep(0.02, 4, 0.0)]), "blocking_call", True),
        # … but who can tell if the loop thread's runs are not counted
        (stall(runs=None, rounds=[GIL_HELD], others={7: 0.99}), "unknown", False),
        (stall(runs=None, rounds=[GIL_HELD]), "blocking_call", False),
        # CPU
        (stall(cpu=0.95), "cpu", True),
        (stall(cpu=0.55), "cpu", True),
        (stall(cpu=0.45), "blocking_call", False),
        (stall(cpu=0.95, rounds=[GIL_HELD], samples=samples(count=1)), "cpu", True),
        (stall(cpu=0.95, samples=samples(count=1)), "cpu", False),
        (stall(cpu=0.4, run_wait=0.4), "cpu", False),
        (stall(cpu=0.6, runs=300, rounds=[GIL_HELD], others={7: 0.4}), "cpu", True),
        (stall(cpu=None), "unknown", False),
        # starved
        (stall(cpu=0.3, run_wait=0.6), "starved", True),
        (stall(cpu=0.2, run_wait=0.3, throttled=0.8), "starved", True),
        (stall(run_wait=None, throttled=0.8), "starved", False),
        (stall(throttled=0.8), "blocking_call", True),
        (stall(cpu=0.9, throttled=0.8), "cpu", True),
        (stall(rounds=[STOPPED], throttled=0.9), "starved", True),
        (stall(runs=180, rounds=[GIL_HELD], throttled=0.9), "starved", True),
        # suspended
        (stall(rounds=[STOPPED]), "suspended", True),
        (stall(rounds=[STOPPED], runs=None, cpu=None, run_wait=None), "suspended", True),
        (stall(rounds=[STOPPED], samples=samples(LOCK)), "suspended", True),
        (stall(rounds=[Oversleep(0.3, 1, 0.0)]), "blocking_call", False),
        (stall(rounds=[Oversleep(0.98, 1, 0.97)]), "blocking_call", True),
        (stall(cpu=0.9, rounds=[STOPPED]), "cpu", True),
        (stall(others={7: 0.9}, rounds=[STOPPED]), "blocking_call", True),
        (stall(suspended=3600.0), "suspended", True),
        (stall(suspended=0.001), "blocking_call", True),
        (stall(state="t"), "suspended", True),
        (stall(samples=debugger()), "suspended", True),
        (stall(samples=debugger(cmd.__file__)), "suspended", True),
        (stall(samples=debugger(cmd.__file__, "/srv/app/hook.py")), "blocking_call", True),
        (stall(samples=samples(frames("/x/debugpy/_vendored/pydevd.py"))), "suspended", True),
        (stall(samples=samples((*frames(pdb.__file__), *USER))), "blocking_call", True),
        # collections
        (stall(cpu=0.9, gc_s=0.6), "gc", True),
        (stall(cpu=0.9, gc_s=0.4), "cpu", True),
        # the GIL
        (stall(runs=180, rounds=[GIL_HELD], others={7: 0.95, 8: 0.1}), "gil_contention", True),
        (stall(runs=180, rounds=[GIL_HELD], others={7: 0.95, 8: 0.9}), "gil_contention", False),
        (stall(runs=180, rounds=[GIL_HELD], others={7: 0.4, 8: 0.5}), "gil_contention", False),
        (stall(runs=180, rounds=[GIL_HELD], others={7: 0.4}), "gil_contention", False),
        (stall(runs=180, rounds=[GIL_HELD]), "gil_contention", False),
        (
            stall(runs=300, rounds=[Oversleep(0.005, 2, 0.0)], others={7: 0.9}),
            "gil_contention",
            True,
        ),
        (stall(runs=180, rounds=[], others={7: 0.95}), "blocking_call", False),
        # many callbacks
        (stall(cpu=0.9, samples=turns("a", "b", "c", "a", "b", "c")), "saturation", True),
        (stall(cpu=0.9, samples=turns("a", "b", "c")), "saturation", False),
        (stall(cpu=0.9, samples=turns("a", "b")), "cpu", False),
        (stall(cpu=0.9, samples=turns("a", "a", "a", "b", "c")), "cpu", True),
        # imports
        (stall(samples=samples((*USER, *IMPORTING))), "import", True),
        (stall(cpu=0.9, samples=samples((*USER, *IMPORTING))), "import", True),
        (stall(samples=samples((*IMPORTING, *frames(LOOP), *USER))), "blocking_call", True),
        # locks
        (stall(samples=samples(LOCK)), "lock", True),
        (stall(samples=samples(LOCK, waits="futex")), "lock", True),
        (stall(samples=samples(LOCK, waits="syscall 230")), "blocking_call", True),
        (stall(samples=samples(ACQUIRING)), "lock", True),
        (stall(samples=samples(ANOTHER_LINE)), "blocking_call", True),
        (stall(samples=samples(waits="futex")), "lock", True),
        (stall(samples=samples(frames(queue.__file__))), "lock", True),
        (stall(cpu=0.9, samples=samples(LOCK)), "cpu", True),
    ],
)
def test_verdicts(evidence: Evidence, cause: str, confident: bool) -> None:
    """Each case has its cause, and is certain of it only where nothing else could be."""
    verdict = judge(evidence)
    assert (verdict.cause, verdict.confident) == (cause, confident), verdict.facts


def test_the_thread_that_held_the_gil_is_named() -> None:
    """Contention names the busiest thread by its native id, with the CPU it used."""
    facts = judge(stall(runs=180, rounds=[GIL_HELD], others={7: 0.1, 8: 0.95})).facts
    assert (facts["thread"], facts["thread_cpu_s"]) == (8, 0.95)


def test_nobody_is_named_for_a_gil_held_without_cpu() -> None:
    """Where no thread used the CPU, the holder cannot be known, and none is accused."""
    assert "thread" not in judge(stall(runs=180, rounds=[GIL_HELD], others={8: 0.1})).facts


def test_a_loop_that_woke_up_before_it_was_held_did_not_want_the_gil() -> None:
    """What counts is how often it woke up while the watchdog was kept away, not in all."""
    slept = LoopRound(1.0, 0.0, 3)
    held = stall(runs=180, rounds=[GIL_HELD], samples=samples(count=1), loop_rounds=[slept])
    assert judge(held).cause == "blocking_call"
    wanted = LoopRound(1.0, 0.0, 180)
    assert judge(replace(held, loop_rounds=[wanted])).cause == "gil_contention"
    mixed = [LoopRound(0.2, 0.0, 170), LoopRound(0.98, 0.0, 3)]
    assert judge(replace(held, rounds=[ON_TIME, GIL_HELD], loop_rounds=mixed)).cause != (
        "gil_contention"
    )


def test_what_wakes_the_loop_anyway_is_no_request_for_the_gil() -> None:
    """A busy loop was woken up for its own reasons in the part of the round before the hold."""
    busy = LoopRound(1.5, 0.0, 120)
    held = stall(runs=120, rounds=[GIL_HELD], samples=samples(count=1), loop_rounds=[busy])
    assert judge(held).cause == "gil_contention"
    assert judge(replace(held, usual_runs=200.0)).cause == "blocking_call"


def test_a_loop_that_ran_itself_did_not_wait_for_the_gil() -> None:
    """The watchdog is late because of the loop then, not of another thread."""
    ran = LoopRound(1.0, 0.95, 180)
    held = stall(cpu=0.45, runs=180, rounds=[GIL_HELD], loop_rounds=[ran])
    assert judge(held).cause != "gil_contention"


@pytest.mark.parametrize(
    ("late", "waited"),
    [
        (Oversleep(0.06, 12, 0.0), 0.06),
        (Oversleep(0.06, 12, 0.02), pytest.approx(0.04)),
        (Oversleep(0.06, 1, 0.0), 0.0),
        (Oversleep(0.006, 1, 0.0), 0.0),
        (Oversleep(0.06, None, 0.0), 0.0),
    ],
)
def test_waiting_for_the_gil_is_asking_for_it(late: Oversleep, waited: float) -> None:
    """Who was late but asked for nothing, or for a CPU, or hardly late, did not wait for it."""
    assert late.gil_wait(0.005) == waited


def test_facts_leave_out_what_is_not_known() -> None:
    """A figure that could not be read is absent, not zero."""
    facts = judge(stall(cpu=None, runs=None, rounds=[])).facts
    assert not {"cpu_s", "gil_wait_s", "oversleep_s", "oversleep_switches"} & facts.keys()
    assert facts["run_wait_s"] == 0


def test_without_any_books_nothing_is_claimed() -> None:
    """Where a platform tells nothing but the time, only the stack can speak."""
    bare: dict[str, Any] = {
        "start": Moment(100.0),
        "end": Moment(101.0),
        "rounds": [Oversleep(0.5)],
    }
    assert judge(stall(**bare)).cause == "unknown"
    assert judge(stall(**bare, gc_s=0.9)).cause == "gc"
    assert judge(stall(**bare, samples=debugger())).cause == "suspended"
    assert judge(stall(**bare, samples=samples((*USER, *IMPORTING)))).cause == "import"


def test_books_opened_before_the_stall_do_not_make_a_busy_loop_look_still() -> None:
    """CPU is compared with the stall's length, although the books cover more than that."""
    assert judge(stall(cpu=0.9, window=4.0)).cause == "cpu"


def test_a_moment_without_length_is_no_division_by_zero() -> None:
    """A stall that ended as it began is judged, if not with confidence."""
    verdict = judge(stall(window=0.0, duration_s=0.0))
    assert not verdict.confident


@pytest.mark.parametrize("interval", [0.001, 0.005, 0.02])
def test_requests_for_the_gil_are_counted_by_the_switch_interval(interval: float) -> None:
    """A process may have set its own; the count expected follows from it."""
    asked = Oversleep(0.98, int(0.95 / interval), 0.0)
    held = stall(rounds=[asked], switch_interval_s=interval)
    assert judge(held).cause == "blocking_call"
    assert judge(replace(held, rounds=[STOPPED])).cause == "suspended"


def test_an_oversleep_is_what_lies_between_two_moments() -> None:
    """The sleep, its switch and the watchdog's work are left out; the unknown stays unknown."""
    before = Moment(1.0, own_switches=10, own_run_wait=0.5, own_cpu=2.0)
    after = Moment(1.35, own_switches=13, own_run_wait=0.6, own_cpu=2.05)
    late = Oversleep.between(before, after, 0.1)
    assert late.seconds == pytest.approx(0.2)
    assert late.switches == 2
    assert late.run_wait == pytest.approx(0.1)
    assert late.kept_away == pytest.approx(0.1)
    assert Oversleep.between(Moment(1.0), Moment(1.05), 0.1) == (0.0, None, None)


def _with_lock(lock: Any) -> None:
    lock.acquire(
        True,
    )


def test_a_call_over_several_lines_is_still_an_acquire() -> None:
    """The interpreter names the line on which the call begins."""
    line = _with_lock.__code__.co_firstlineno + 1
    assert judge(stall(samples=samples(((_with_lock.__code__, line),)))).cause == "lock"
