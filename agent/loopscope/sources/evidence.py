"""What can be read about a thread from outside of it, in order to say why it stood still.

A stack says where a loop was during a stall, not why it did not come back. The kernel's books say
the rest: whether the thread ran, waited for a CPU, or slept; whether the process was allowed to run
at all. They are read twice, before and after, and ``loopscope.sources.cause`` makes sense of the
difference. Here is only reading; whatever a platform does not have reads None.

**Telling a process that was stopped from a GIL that was held.** Either way the watchdog comes back
late and nobody used a CPU. But a thread that wants CPython's GIL waits for it by the switch
interval: it wakes up every 5 ms to ask again (``take_gil`` in Python/ceval_gil.c), and each wait is
a voluntary context switch. A stopped thread asks for nothing. So the watchdog's own count of
switches tells the two apart, and the loop thread's count (the third figure in its schedstat, "times
put on a CPU") tells a loop that wants the GIL from one that sleeps while somebody else has it.
Measured on two CPUs, Linux 6.18, a watchdog that sleeps 10 ms between its readings, over its one
late sleep, the sleep's own switch included (3.11.7, 3.12.1 and 3.13.0, two runs each):

==========================================  ==============  ======================================
what happened                               late by         switches of the watchdog / runs of loop
==========================================  ==============  ======================================
nothing (the loop in ``time.sleep``)        < 1 ms          1 / 0 to 1
SIGSTOP, SIGCONT 0.4 s later                393 to 402 ms   2 / 1 to 2
loop in ``PyDLL(None).usleep(300000)``      291 to 300 ms   58 to 61 / 2 to 3
loop in re, backtracking                    364 to 429 ms   71 to 83 / 4 (13, 17 when preempted)
worker in re, the loop wants the GIL        366 to 415 ms   75 to 82 / 78 to 86
worker in re, the loop in ``time.sleep``    357 to 422 ms   72 to 83 / 0 to 9
==========================================  ==============  ======================================

The kernel counts the time a cgroup's CPU quota keeps a thread off the CPUs as waiting for a CPU
(also in Linux 6.18, which throttles threads one by one): a loop that span under a quota of 0.2 CPUs
for 0.6 s ran 65 ms, waited 218 ms for a CPU and the rest for the GIL, which was with the equally
throttled watchdog. The group's throttled time is summed over CPUs, hence can exceed wall time.

**What it costs.** On that machine, best of five: ``snapshot`` 24 µs, ``brief`` 12 µs,
``own`` 7 µs, ``waits_in_kernel`` 12 µs, ``other_threads`` 9 µs and 1.5 µs for each (a thread's
clock is read without opening a file; to read the schedstats of 41 took 590 µs, to read their clocks
65 µs).

Every ordinary read of a file lets go of the GIL, and where others want it, it takes a switch
interval to get it back: four reads may end 20 ms after they began, or 300. So snapshots read with
the GIL held, where the C library can be called that way (Linux). The other functions here do let go
of it. A sampler must take the stack *before* it calls those, else it sees where the loop went
afterwards; and it is late by whole rounds, reading included, not by its sleeps alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loopscope.sources.cgroup import find_statistics, parse_statistics

_FUTEX = {"x86_64": "202", "aarch64": "98", "riscv64": "98", "ppc64le": "221", "s390x": "238"}
"""The number of the futex call, by machine; the others' are not known here."""
_POLLS = {"x86_64": ("232", "281", "441"), "aarch64": ("22", "441"), "riscv64": ("22", "441")}
"""The numbers of epoll_wait, epoll_pwait and epoll_pwait2, as far as a machine has them."""
_MACHINE = platform.machine()
_RUSAGE_THREAD: int | None = getattr(resource, "RUSAGE_THREAD", None)
_ENOUGH = 512  # bytes; none of these files is longer


@dataclass(frozen=True, slots=True)
class Moment:
    """The books at one moment. Only differences between two moments of one ``Witness`` mean much.

    Times are in seconds; what begins with ``own`` is about the thread that took the snapshot.
    """

    at: float
    """``time.perf_counter()``."""
    cpu: float | None = None
    """CPU the thread has used."""
    run_wait: float | None = None
    """Time the thread was ready to run and waited for a CPU."""
    runs: int | None = None
    """Times the thread was put on a CPU: after a sleep, or after others had been on it."""
    state: str | None = None
    """The kernel's letter: R runs, S sleeps, D waits for a disk, T stopped, t traced."""
    major_faults: int | None = None
    """Memory accesses of the thread that had to wait for a disk."""
    throttled: float | None = None
    """Time the quota kept the cgroup off CPUs, summed over CPUs."""
    suspended: float | None = None
    """Time the machine has been asleep since it was started."""
    own_cpu: float = 0.0
    own_run_wait: float | None = None
    own_switches: int | None = None
    """Times the watching thread gave up its CPU of its own accord."""


class ThreadClock:
    """The CPU time of another thread of this process.

    On Linux the clock's number is made as the C libraries make it (glibc's and musl's
    ``pthread_getcpuclockid``: a thread's id and two flags) but without looking into memory the
    thread may have left behind: asking them about a thread that is gone is undefined, asking the
    kernel is an error. Elsewhere ``ident`` must be alive when this is built.
    """

    def __init__(self, ident: int, native_id: int) -> None:
        self._native_id = native_id
        self._number: int | None = None
        if sys.platform == "linux":
            self._number = _clock_number(native_id)
        elif hasattr(time, "pthread_getcpuclockid"):
            self._number = time.pthread_getcpuclockid(ident)

    def cpu(self) -> float | None:
        """Seconds of CPU used; None once the thread is gone, in a forked child, or unknowable."""
        if self._number is not None:
            with suppress(OSError):
                return time.clock_gettime_ns(self._number) / 1e9
        figures = parse_schedstat(_text(f"/proc/self/task/{self._native_id}/schedstat"))
        return figures[0] if figures else None


class Witness:
    """Takes snapshots of one thread, always from the same other thread.

    Keeps up to four files open until ``close``. In a forked child, where the thread does not exist,
    it opens its files anew, and so reads None of that thread rather than its parent's books.
    ``root`` is where ``proc`` and ``sys`` are.
    """

    def __init__(self, ident: int, native_id: int, root: Path = Path("/")) -> None:
        self._clock = ThreadClock(ident, native_id)
        thread = root / "proc/self/task" / str(native_id)
        self._schedstat = _Kept(thread / "schedstat")
        self._stat = _Kept(thread / "stat")
        self._own_schedstat = _Kept(root / "proc/thread-self/schedstat")
        self._quota = _Kept(find_statistics(root))

    def snapshot(self) -> Moment:
        """The books now. Raises nothing."""
        at = time.perf_counter()
        own_cpu = time.thread_time()
        own_switches = _own_switches()
        suspended = _suspended()
        cpu = self._clock.cpu()
        scheduled = parse_schedstat(self._schedstat.read())  # from here on the GIL may be lost
        own_run_wait = self._own_run_wait()
        state, faults = _stat(self._stat.read())
        quota = parse_statistics(os.fsdecode(self._quota.read()))
        return Moment(
            at=at,
            cpu=cpu,
            run_wait=scheduled[1] if scheduled else None,
            runs=scheduled[2] if scheduled else None,
            state=state,
            major_faults=faults,
            throttled=quota[2] if quota else None,
            suspended=suspended,
            own_cpu=own_cpu,
            own_run_wait=own_run_wait,
            own_switches=own_switches,
        )

    def brief(self) -> Moment:
        """What changes all the time: the schedules of both threads, at half the cost."""
        own_run_wait = self._own_run_wait()
        scheduled = parse_schedstat(self._schedstat.read())
        return Moment(
            at=time.perf_counter(),
            cpu=self._clock.cpu(),
            run_wait=scheduled[1] if scheduled else None,
            runs=scheduled[2] if scheduled else None,
            own_cpu=time.thread_time(),
            own_switches=_own_switches(),
            own_run_wait=own_run_wait,
        )

    def own(self) -> Moment:
        """Only what is about the calling thread: enough to tell why it overslept."""
        own_run_wait = self._own_run_wait()  # first, for it may cost us the GIL
        return Moment(
            at=time.perf_counter(),
            own_cpu=time.thread_time(),
            own_switches=_own_switches(),
            own_run_wait=own_run_wait,
        )

    def close(self) -> None:
        """Close the files; twice is once. A snapshot after that opens them again."""
        for file in (self._schedstat, self._stat, self._own_schedstat, self._quota):
            file.close()

    def _own_run_wait(self) -> float | None:
        figures = parse_schedstat(self._own_schedstat.read())
        return figures[1] if figures else None


def other_threads(*known: int) -> dict[int, float]:
    """CPU seconds by native id of all threads but the caller and ``known``; empty if unknowable.

    Threads that are not Python's count too: they may hold the GIL as well as any.
    """
    if sys.platform != "linux":
        return {}
    passed_over = {threading.get_native_id(), *known}
    used: dict[int, float] = {}
    try:
        names = os.listdir("/proc/self/task")  # noqa: PTH208  # half the time of Path's
    except OSError:
        return used
    for native_id in map(int, names):
        if native_id not in passed_over:
            try:
                used[native_id] = time.clock_gettime_ns(_clock_number(native_id)) / 1e9
            except OSError:
                continue  # it has ended meanwhile
    return used


def schedule(process: int, native_id: int) -> tuple[float, float, int] | None:
    """Of a thread of any process: seconds on a CPU, seconds waiting for one, times put on one.

    None where there is no such thread, or the kernel does not say (Linux does).
    """
    return parse_schedstat(_text(f"/proc/{process}/task/{native_id}/schedstat"))


def is_stopped(process: int) -> bool:
    """Whether a process has been stopped, by SIGSTOP or a debugger. Linux only, else no."""
    return _stat(_text(f"/proc/{process}/stat"))[0] in ("T", "t")


def waits_in_kernel(native_id: int) -> str | None:
    """What a thread is doing in the kernel, in a word; None where that is not to be seen.

    "futex" for a lock, a condition or the GIL; "running"; "syscall 232" for a call by its number
    on this machine; else, outside of calls or where those are hidden, the name of the kernel's
    function (wchan).
    """
    folder = f"/proc/self/task/{native_id}"
    call = _text(f"{folder}/syscall").partition(b" ")[0].strip().decode("ascii", "replace")
    if call == "running":
        return call
    if call not in ("", "-1"):
        return "futex" if call == _FUTEX.get(_MACHINE) else f"syscall {call}"
    place = _text(f"{folder}/wchan").decode("ascii", "replace")
    if place in ("", "0"):
        return None
    return "futex" if place.startswith("futex") else place


def polls_in_kernel(native_id: int) -> bool | None:
    """Whether a thread waits in the kernel for events; None where that is not to be seen."""
    call = waits_in_kernel(native_id)
    if call is None or (call.startswith("syscall") and _MACHINE not in _POLLS):
        return None
    known = _POLLS.get(_MACHINE, ())
    return call.removeprefix("syscall ") in known or call.startswith(("ep_poll", "do_epoll"))


class _Kept:
    """A file that is opened once and read from its beginning again and again."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor = -1
        self._identity: tuple[int, int] | None = None
        self._process = 0
        self._buffer = ctypes.create_string_buffer(_ENOUGH)
        self._address = ctypes.addressof(self._buffer)

    def read(self) -> bytes:
        """What it says now; nothing where it cannot be read."""
        if self._path is None:
            return b""
        try:
            if self._process != os.getpid():
                self._open(self._path)
            return self._read_keeping_gil() if self._identity else b""
        except OSError:
            return b""

    def close(self) -> None:
        """Close what is still ours.

        A service that became a daemon may have closed all descriptors it knew nothing of, and have
        opened other files since, under our number.
        """
        identity, self._identity, self._process = self._identity, None, 0
        with suppress(OSError):
            if identity and _identity(self._descriptor) == identity:
                os.close(self._descriptor)

    def _read_keeping_gil(self) -> bytes:
        """The file, without letting go of the GIL where that can be.

        ``os.pread`` lets go of it, as reading a file should; but these are made up on the spot in
        a microsecond or two, and a loop that computes, or is in a C call, gives the GIL back 5 ms
        later or when the call is over: a watchdog that reads four of them would miss the stall it
        is to explain.
        """
        if _pread is None:
            return os.pread(self._descriptor, _ENOUGH, 0)
        length = _pread(self._descriptor, self._address, _ENOUGH, 0)
        return self._buffer.raw[:length] if length > 0 else b""

    def _open(self, path: Path) -> None:
        self.close()
        self._process = os.getpid()  # first: what cannot be opened is not tried again
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._identity = _identity(self._descriptor)


def _find_pread() -> Callable[..., int] | None:
    """The C library's ``pread``, called with the GIL held; Linux only."""
    if sys.platform != "linux":
        return None
    try:
        pread: Callable[..., int] = ctypes.PyDLL(None).pread64
    except (OSError, AttributeError):  # a static build, another C library
        return None
    pread.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)  # type: ignore[attr-defined]
    pread.restype = ctypes.c_ssize_t  # type: ignore[attr-defined]
    return pread


_pread = _find_pread()


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def _clock_number(native_id: int) -> int:
    """The kernel's number for a thread's CPU clock: CPUCLOCK_PERTHREAD_MASK | CPUCLOCK_SCHED."""
    return ~native_id << 3 | 6


def _own_switches() -> int | None:
    return None if _RUSAGE_THREAD is None else resource.getrusage(_RUSAGE_THREAD).ru_nvcsw


def _suspended() -> float | None:
    """CLOCK_BOOTTIME goes on while the machine sleeps, CLOCK_MONOTONIC does not.

    They cannot be read at once. Should this thread lose its CPU in between, it tries again, for a
    pause of its own must not look like one of the machine's.
    """
    if sys.platform != "linux":
        return None
    offset = 0
    for _ in range(3):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        offset = boot - (before + after) // 2
        if after - before < 1_000_000:
            break
    return offset / 1e9


def parse_schedstat(text: bytes) -> tuple[float, float, int] | None:
    """Seconds on a CPU, seconds waiting for one, times put on one; None if it says otherwise."""
    try:
        on, waiting, times = text.split()
        return int(on) / 1e9, int(waiting) / 1e9, int(times)
    except ValueError:
        return None


def _stat(text: bytes) -> tuple[str | None, int | None]:
    """State and major faults. The name before them is in brackets and may hold brackets itself."""
    fields = text.rpartition(b")")[2].split(maxsplit=10)
    try:
        return fields[0].decode("ascii"), int(fields[9])
    except (IndexError, ValueError):
        return None, None


def _text(path: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # a third of the time of Path's
            return file.read(_ENOUGH) or b""
    except OSError:
        return b""
