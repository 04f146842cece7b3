"""A small watchdog for tests: it samples a real thread that stalls, and has the cause judged."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType

from loopscope.core.stacks import Stack
from loopscope.sources.cause import Evidence, Oversleep, Sample, Verdict, judge
from loopscope.sources.evidence import Moment, Witness, other_threads, waits_in_kernel

TICK = 0.01


def watch(stall: Callable[[], object]) -> Verdict:
    """Run ``stall`` on a thread of its own, and say why that took long."""
    witness = _Watch()
    loop = threading.Thread(target=witness.loop, args=(stall,))
    loop.start()
    try:
        return judge(witness.evidence())
    finally:
        witness.seen.set()
        loop.join()


class _Watch:
    """One stall: ``loop`` is it, ``evidence`` watches it from another thread."""

    def __init__(self) -> None:
        self._ready, self._watched, self.seen = (threading.Event() for _ in range(3))
        self._ident = self._native_id = 0
        self._began = self._ended = self._collecting = 0.0
        self._seen: list[tuple[float, str | None, Stack]] = []
        self._waits: list[str | None] = []

    def loop(self, stall: Callable[[], object]) -> None:
        self._ident, self._native_id = threading.get_ident(), threading.get_native_id()
        with self._collections_timed():
            self._ready.set()
            self._watched.wait()
            self._began = time.perf_counter()
            try:
                stall()
            finally:
                self._ended = time.perf_counter()
                self.seen.wait(10)  # a thread that has ended has no books

    def evidence(self) -> Evidence:
        assert self._ready.wait(10)
        witness = Witness(self._ident, self._native_id)
        books = [(witness.snapshot(), other_threads(self._native_id))]
        late, round_before = [], witness.own()
        self._watched.set()
        while books[-1][0].at < (self._ended or float("inf")):
            time.sleep(TICK)
            self._sample()  # before anything else that lets go of the GIL
            this_round = witness.own()
            late.append(Oversleep.between(round_before, this_round, TICK))
            round_before = this_round
            books.append((witness.snapshot(), other_threads(self._native_id)))
        witness.close()
        (start, used_before), (end, used) = self._around(books)
        return Evidence(
            duration_s=self._ended - self._began,
            start=start,
            end=end,
            rounds=late,
            gc_s=self._collecting,
            samples=[
                Sample(at - self._began, signature, stack, waits)
                for (at, signature, stack), waits in zip(self._seen, self._waits, strict=True)
                if self._began <= at <= self._ended
            ],
            others={tid: cpu - used_before.get(tid, 0.0) for tid, cpu in used.items()},
            switch_interval_s=sys.getswitchinterval(),
        )

    def _around(
        self, books: list[tuple[Moment, dict[int, float]]]
    ) -> tuple[tuple[Moment, dict[int, float]], tuple[Moment, dict[int, float]]]:
        return [book for book in books if book[0].at <= self._began][-1], books[-1]

    def _sample(self) -> None:
        if self._ended:
            return
        at = time.perf_counter()
        frame = sys._current_frames().get(self._ident)
        frames: list[tuple[CodeType, int]] = []
        while frame is not None and frame.f_code is not _Watch.loop.__code__:
            frames.append((frame.f_code, frame.f_lineno or 0))
            frame = frame.f_back
        signature = frames[-1][0].co_name if frames else None
        self._seen.append((at, signature, tuple(reversed(frames))))
        self._waits.append(waits_in_kernel(self._native_id))

    @contextmanager
    def _collections_timed(self) -> Iterator[None]:
        began = 0.0

        def hook(phase: str, info: dict[str, int]) -> None:
            nonlocal began
            if threading.get_ident() != self._ident or self._ended:
                return
            if phase == "start":
                began = time.perf_counter()
            elif self._began:
                self._collecting += time.perf_counter() - began

        gc.callbacks.append(hook)
        try:
            yield
        finally:
            gc.callbacks.remove(hook)
