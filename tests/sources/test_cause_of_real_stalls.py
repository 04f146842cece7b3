"""Real threads that really stall, and what is said of them.

Machines are busy, so each is asked up to three times: the majority decides.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
import operator
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FunctionType

import pytest

from loopscope.sources.cause import Verdict
from tests.sources.stalling import watch

pytestmark = [
    pytest.mark.blocking_allowed,
    pytest.mark.real_time,
    pytest.mark.skipif(sys.platform != "linux", reason="needs the kernel's books"),
]

LONG = 0.25
ROOT = Path(__file__).parents[2]


def agreed(ask: Callable[[], Verdict]) -> str:
    """The cause that two of up to three verdicts name; all of them where no two do.

    A stall that was starved on top of it is judged rightly, and tells nothing: it is repeated.
    """
    verdicts: list[Verdict] = []
    for _ in range(10):
        verdict = ask()
        if verdict.cause == "starved":
            continue
        verdicts.append(verdict)
        cause, votes = Counter(each.cause for each in verdicts).most_common(1)[0]
        if votes == 2:
            return cause
        if len(verdicts) == 3:
            return f"no two agree: {verdicts}"
    pytest.skip("the machine is too busy to run a thread for half of the time")


def spin(seconds: float = LONG) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@functools.cache
def slow_subject() -> str:
    """A string that ``backtrack`` takes about ``LONG`` for, on this machine."""
    length = 16
    while True:
        subject = "a" * length + "b"
        began = time.perf_counter()
        backtrack(subject)
        if time.perf_counter() - began > LONG * 0.7:
            return subject
        length += 1


def backtrack(subject: str) -> None:
    """CPU in C, with the GIL."""
    assert re.match(r"(a+)+$", subject) is None


def sleep_with_gil() -> None:
    ctypes.PyDLL(None).usleep(int(LONG * 1e6))


def many_short_calls() -> None:
    for _ in range(80):
        time.sleep(0.003)


@contextmanager
def worker(target: Callable[[], object]) -> Iterator[threading.Thread]:
    """A thread that runs ``target`` as soon as the block is entered."""
    thread = threading.Thread(target=target)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


@pytest.mark.parametrize(
    "call",
    [
        functools.partial(time.sleep, LONG),
        functools.partial(subprocess.run, ["sleep", str(LONG)], check=True),
        sleep_with_gil,
        many_short_calls,
    ],
    ids=["sleep", "subprocess.run", "a call that sleeps with the GIL", "many short calls"],
)
def test_a_blocking_call(call: Callable[[], object]) -> None:
    """A thread that sleeps in a call is blocked by it, with the GIL or without."""
    assert agreed(lambda: watch(call)) == "blocking_call"


@pytest.mark.parametrize("call", [functools.partial(time.sleep, LONG), sleep_with_gil])
def test_a_blocking_call_is_certain(call: Callable[[], object]) -> None:
    """Several samples that agree make a sure verdict, and so does one from behind the GIL."""
    verdicts = [watch(call) for _ in range(3)]
    assert any(verdict.confident for verdict in verdicts), verdicts


def test_a_python_loop_is_cpu() -> None:
    """A thread that runs Python all the time is a matter of CPU."""
    assert agreed(lambda: watch(spin)) == "cpu"


def test_a_regular_expression_that_backtracks_is_cpu() -> None:
    """A thread that runs C with the GIL, so that nobody could look meanwhile, is too."""
    subject = slow_subject()
    assert agreed(lambda: watch(lambda: backtrack(subject))) == "cpu"


@pytest.mark.parametrize("how", ["acquire", "with", "queue"])
def test_a_lock_that_another_thread_holds(how: str) -> None:
    """Waiting for another thread is a lock, however it is written down."""

    def ask() -> Verdict:
        lock = threading.Lock()
        condition = threading.Condition()

        def stall() -> None:
            if how == "acquire":
                lock.acquire()
            elif how == "with":
                with lock:
                    pass
            else:
                with condition:
                    condition.wait(LONG)

        lock.acquire()
        timer = threading.Timer(LONG, lock.release)
        timer.start()
        try:
            return watch(stall)
        finally:
            timer.join()

    assert agreed(ask) == "lock"


def test_a_collection_over_a_big_heap() -> None:
    """Time spent collecting garbage is the collector's, not that of the line it happened on."""
    heap = [[number] for number in range(600_000)]

    def collect() -> None:
        until = time.perf_counter() + LONG
        while time.perf_counter() < until:
            gc.collect()

    assert agreed(lambda: watch(collect)) == "gc"
    heap.clear()


def test_importing_a_slow_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that takes its time while it is imported is an import, whatever it does then."""
    monkeypatch.syspath_prepend(tmp_path)

    def ask() -> Verdict:
        name = f"slow_module_{time.perf_counter_ns()}"
        (tmp_path / f"{name}.py").write_text(f"import time\ntime.sleep({LONG})\n")
        verdict = watch(lambda: __import__(name))
        sys.modules.pop(name, None)
        return verdict

    assert agreed(ask) == "import"


def test_a_worker_that_holds_the_gil_while_the_loop_wants_it() -> None:
    """The loop is the victim of another thread, and that thread is named."""
    subject = slow_subject()
    named = []

    def ask() -> Verdict:
        go, judged = threading.Event(), threading.Event()

        def hold() -> None:
            go.wait()
            backtrack(subject)
            judged.wait()  # a thread that has ended has no books

        def want() -> None:
            go.set()
            spin(0.02)  # loses the GIL on the way, and does not get it back

        with worker(hold) as holder:
            verdict = watch(want)
            judged.set()
        named.append(verdict.facts.get("thread") == holder.native_id)
        return verdict

    assert agreed(ask) == "gil_contention"
    assert Counter(named).most_common(1)[0][0], named


@pytest.mark.parametrize("gil", [True, False], ids=["with the GIL", "without the GIL"])
def test_a_busy_worker_is_not_to_blame_for_a_sleep(gil: bool) -> None:
    """A loop that sleeps while a worker computes wants nothing from it."""
    subject = slow_subject()

    def compute() -> None:
        if gil:
            time.sleep(0.05)
            backtrack(subject)
        else:
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", int(LONG * 2_000_000))

    def ask() -> Verdict:
        with worker(compute):
            return watch(lambda: time.sleep(2 * LONG))

    assert agreed(ask) == "blocking_call"


def test_many_short_calls_beside_a_busy_worker_are_still_calls() -> None:
    """A loop that wakes up as often as one that wants the GIL does not want it if it is free."""

    def ask() -> Verdict:
        with worker(lambda: hashlib.pbkdf2_hmac("sha256", b"a", b"b", int(LONG * 2_000_000))):
            return watch(many_short_calls)

    assert agreed(ask) == "blocking_call"


def test_workers_that_compute_in_python_starve_the_loop_of_the_gil() -> None:
    """A loop that wakes up often has to wait for the GIL each time, and one of them is named."""
    named = []

    def ask() -> Verdict:
        judged = threading.Event()

        def compute() -> None:
            while not judged.is_set():
                pass

        with worker(compute) as one, worker(compute) as two:
            verdict = watch(lambda: spin(LONG))
            judged.set()
        named.append(verdict.facts.get("thread") in (one.native_id, two.native_id))
        return verdict

    assert agreed(ask) == "gil_contention"
    assert any(named)


def test_many_small_callbacks_have_no_culprit() -> None:
    """Where each sample shows another callback, the loop is saturated."""

    def callback(number: int) -> Callable[[], None]:
        code = spin_briefly.__code__.replace(co_name=f"callback_{number}")
        return FunctionType(code, globals())

    # Called from C, so that each is the outermost frame there is.
    def all_in_turn() -> Callable[[], object]:
        return functools.partial(list, map(operator.call, map(callback, range(30))))

    assert agreed(lambda: watch(all_in_turn())) == "saturation"


def spin_briefly() -> None:
    spin(LONG / 25)


STOPPED = """
from tests.sources.stalling import watch
import time
def work():
    print("ready", flush=True)
    {work}
while True:
    print(watch(work).cause, flush=True)
"""


@pytest.mark.parametrize("work", ["time.sleep(0.1)", "sum(range(1_000_000))"])
def test_a_process_that_was_stopped(work: str) -> None:
    """SIGSTOP accuses nobody, whatever the loop was doing.

    In a child: a shell takes its terminal back from a test run that stops.
    """
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED.format(work=work)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        said = child.stdout
        assert said is not None

        def ask() -> str:
            assert said.readline() == "ready\n"
            child.send_signal(signal.SIGSTOP)
            time.sleep(2 * LONG)
            child.send_signal(signal.SIGCONT)
            return said.readline().strip()

        try:
            causes = [ask() for _ in range(3)]
        finally:
            child.kill()
    assert causes.count("suspended") >= 2
