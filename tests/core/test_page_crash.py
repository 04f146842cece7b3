"""Pages of writers that are killed, run out of disk or are simply busy: other processes read on."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from loopscope.core.clock import Clock
from loopscope.core.histogram import Histogram
from loopscope.core.metric import Metric
from loopscope.core.page import Page, PageReader, read_file, read_header

TIMES = Metric("time_seconds", "histogram", "Time.", ("route",), "seconds", (0.1, 1.0))
VALUE = 0.5
"""Every observation, exactly representable: a sum says how many went into it."""

Slots = dict[tuple[str, ...], tuple[float, ...]]


def slots_of(buffer: bytes) -> Slots:
    """Every series' slots, read from scratch."""
    reader = PageReader()
    reader.update(buffer)
    return {
        series.labels: tuple(memoryview(series.raw(buffer)).cast("d")) for series in reader.series
    }


def observe_for_ever(directory: Path, say: Callable[[], object]) -> None:
    """Observe round and round over more and more routes; ``say`` so after every observation."""
    page = Page.in_directory(directory, Clock())
    histograms: list[Histogram] = []
    while True:
        base = page.allocate(TIMES, [f"/{len(histograms)}"])
        histograms.append(Histogram(page.slots, base, TIMES.bounds))
        for histogram in histograms[-5:]:
            histogram.observe(VALUE)
            say()


def fork(body: Callable[[], object]) -> int:
    """Run ``body`` in a child; whatever becomes of it, it never returns into the test run."""
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
        os._exit(0)
    except BaseException:
        os._exit(1)


@pytest.mark.parametrize("patience", [1, 7, 100, 1_003, 10_000, 30_011])
def test_no_completed_observation_is_lost_to_a_kill(tmp_path: Path, patience: int) -> None:
    """After SIGKILL a page holds what its writer had done, and at most the one it was doing."""
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as said:
        pid = fork(lambda: observe_for_ever(tmp_path, lambda: os.write(theirs, b".")))
        os.close(theirs)
        completed = len(said.read(patience))
        os.kill(pid, signal.SIGKILL)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
        completed += len(said.read())
    (path,) = tmp_path.iterdir()
    slots = slots_of(read_file(path)).values()
    counted = sum(sum(buckets) for *buckets, _ in slots)
    summed = sum(total / VALUE for *_, total in slots)
    assert completed <= summed <= counted <= completed + 1
    assert not read_header(read_file(path)).closed


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from loopscope.core.clock import Clock
    from loopscope.core.histogram import Histogram
    from loopscope.core.metric import Metric
    from loopscope.core.page import Page
    TIMES = Metric("time_seconds", "histogram", "Time.", ("route",), "seconds", (0.1, 1.0))
    page = Page.in_directory(Path(sys.argv[1]), Clock())
    print(page.path, flush=True)
    number = 0
    while True:
        base = page.allocate(TIMES, [f"/{number % 50_000:0100}"])
        histogram = Histogram(page.slots, base, TIMES.bounds)
        for value in (0.05, 0.5, 5.0) * 10:
            histogram.observe(value)
        page.beat(float(number))
        number += 1
        if number == 40_000:
            sys.stdin.read()
    """
)


def _first_line(stream: IO[str] | None) -> str:
    assert stream is not None
    return stream.readline().strip()


@contextmanager
def writing(directory: Path) -> Iterator[Path]:
    """The page of another program that is busy writing to it."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        try:
            yield Path(_first_line(writer.stdout))
        finally:
            writer.kill()


@pytest.mark.real_time
def test_whoever_reads_a_page_being_written_never_sees_a_number_go_back(tmp_path: Path) -> None:
    """Each slot, the heartbeat and the list of series only grow, past several reservations."""
    with writing(tmp_path) as path:
        seen: Slots = {}
        beats, reader = [0.0], PageReader()
        while (buffer := read_file(path)) and len(buffer) < 1 << 20:
            now = slots_of(buffer)
            assert list(now)[: len(seen)] == list(seen)
            for labels, before in seen.items():
                assert all(new >= old for new, old in zip(now[labels], before, strict=True))
            seen = now
            beats.append(reader.update(buffer).heartbeat)
            assert [series.labels for series in reader.series] == list(now)
    assert seen
    assert len(set(beats)) > 2


def test_what_was_seen_is_still_there_after_the_kill(tmp_path: Path) -> None:
    """Nothing another process has once read of a page is taken back by its writer's death."""
    with writing(tmp_path) as path:
        while len(buffer := read_file(path)) < 1 << 18:
            pass
    after = slots_of(read_file(path))
    for labels, before in slots_of(buffer).items():
        assert all(new >= old for new, old in zip(after[labels], before, strict=True))


def test_a_writer_held_to_small_files_is_told_and_lives(tmp_path: Path) -> None:
    """Beyond the limit on file sizes a page is an OSError, not a fatal signal, and no file."""

    def try_to_make_one() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        with pytest.raises(OSError, match="too large"):
            Page.in_directory(tmp_path, Clock())

    _, status = os.waitpid(fork(try_to_make_one), 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_page_outlives_its_file(tmp_path: Path) -> None:
    """Someone tidying up the directory costs us our readers, not our process."""

    def lose_the_file() -> None:
        page = Page.in_directory(tmp_path, Clock())
        for path in tmp_path.iterdir():
            path.unlink()
        for number in range(10_000):
            page.slots[page.allocate(TIMES, [str(number)])] += 1
        page.close(remove=True)

    _, status = os.waitpid(fork(lose_the_file), 0)
    assert os.waitstatus_to_exitcode(status) == 0
