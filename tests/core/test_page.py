"""Pages: written by one process, read by any, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.clock import Clock
from loopscope.core.histogram import Histogram
from loopscope.core.merge import ReadPage, merge
from loopscope.core.metric import Metric
from loopscope.core.page import (
    HEADER_BYTES,
    Page,
    PageError,
    PageFullError,
    PageReader,
    read_file,
    read_header,
)

COUNTER = Metric("things_total", "counter", "Things.", ("kind",))
TIMES = Metric("time_seconds", "histogram", "Time.", ("route",), "seconds", (0.1, 1.0))


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    made = Page.in_directory(tmp_path, Clock(), capacity=1 << 20)
    yield made
    made.close(remove=True)


def values(buffer: bytes | memoryview) -> dict[tuple[str, ...], list[float]]:
    reader = PageReader()
    reader.update(buffer)
    return {
        (family.metric.name, *labels): family.values(raw)
        for family in merge([ReadPage(reader, buffer)])
        for labels, raw in family.rows.items()
    }


def written(page: Page) -> Path:
    assert page.path is not None
    return page.path


def test_what_is_written_is_read_back(page: Page) -> None:
    """Metrics and label sets come back from the file as they were declared."""
    page.slots[page.allocate(COUNTER, ["ü"])] += 3
    Histogram(page.slots, page.allocate(TIMES, ["/"]), TIMES.bounds).observe(0.5)
    assert values(read_file(written(page))) == {
        ("things_total", "ü"): [3.0],
        ("time_seconds", "/"): [0.0, 1.0, 0.0, 0.5],
    }


@given(st.lists(st.tuples(st.text(), st.floats(allow_nan=False)), max_size=20))
def test_any_label_and_value_survive(rows: list[tuple[str, float]]) -> None:
    """Labels may be any text and values any number; the same label twice is added up."""
    page = Page.anonymous(Clock(), capacity=1 << 16)
    for label, value in rows:
        page.slots[page.allocate(COUNTER, [label])] = value
    found = values(page.view)
    for label, _ in rows:
        assert found["things_total", label] == [sum(v for name, v in rows if name == label)]


def test_the_header_says_who_writes(page: Page) -> None:
    """Pid, times and state are in the header; closing in good order shows."""
    page.beat(123.5)
    header = read_header(read_file(written(page)))
    assert (header.pid, header.heartbeat, header.closed) == (os.getpid(), 123.5, False)
    page.close()
    assert read_header(read_file(written(page))).closed


def test_a_file_is_for_its_owner_only(page: Page) -> None:
    """Figures may say much about a service: nobody else may read them."""
    assert written(page).stat().st_mode & 0o777 == 0o600


def test_a_page_grows_past_its_first_reservation(page: Page) -> None:
    """Series beyond the first blocks reserve more, and handles stay good."""
    first = page.allocate(COUNTER, ["first"])
    for number in range(6000):
        page.allocate(COUNTER, [f"label {number:040}"])
    page.slots[first] += 1
    found = values(read_file(written(page)))
    assert len(found) == 6001
    assert found["things_total", "first"] == [1.0]


def test_a_full_page_says_so() -> None:
    """Beyond the capacity there is an exception, not a crash, and nothing half written."""
    page = Page.anonymous(Clock(), capacity=4096)
    with pytest.raises(PageFullError):
        for number in range(1000):
            page.allocate(COUNTER, [str(number)])
    assert len(values(page.view)) > 10


def test_a_full_disk_says_so(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no block can be had the page is full: touching a hole would kill the process."""

    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(PageFullError, match="no space"):
        for number in range(6000):
            page.allocate(COUNTER, [f"label {number:040}"])


def test_threads_may_allocate_at_once() -> None:
    """Two threads that add series at the same time lose none."""
    page = Page.anonymous(Clock(), capacity=1 << 20)

    def add(name: str) -> None:
        for number in range(500):
            page.slots[page.allocate(COUNTER, [f"{name}{number}"])] = 1.0

    threads = [threading.Thread(target=add, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(value for (value,) in values(page.view).values()) == 1000


def test_wrong_labels_are_refused(page: Page) -> None:
    """A series needs as many label values as its metric has labels."""
    with pytest.raises(ValueError, match="things_total"):
        page.allocate(COUNTER, [])


def test_a_fork_does_not_write_into_the_parents_page() -> None:
    """An anonymous page is private to its process."""
    page = Page.anonymous(Clock(), capacity=1 << 16)
    slot = page.allocate(COUNTER, ["a"])
    pid = os.fork()
    if pid == 0:
        page.slots[slot] = 99.0
        os._exit(0)
    os.waitpid(pid, 0)
    assert page.slots[slot] == 0.0


WRITER = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from loopscope.core.clock import Clock
    from loopscope.core.histogram import Histogram
    from loopscope.core.metric import Metric
    from loopscope.core.page import Page
    TIMES = Metric("time_seconds", "histogram", "Time.", ("route",), "seconds", (0.1, 1.0))
    page = Page.in_directory(Path(sys.argv[1]), Clock(), capacity=1 << 22)
    done = 0
    while True:
        if done % 50 == 0:
            base = page.allocate(TIMES, [str(done % 2000)])
            histogram = Histogram(page.slots, base, TIMES.bounds)
        histogram.observe(0.5)
        done += 1
        if done % 100 == 0:
            print(done, flush=True)
    """
)


def test_another_process_reads_while_it_is_written_and_after_a_kill(tmp_path: Path) -> None:
    """Counts never go back, and every observation completed before SIGKILL is still there."""
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    try:
        said = int(writer.stdout.readline())
        (path,) = tmp_path.glob("*.page")
        last = 0.0
        for _ in range(30):
            count = sum(sum(slots[:-1]) for slots in values(read_file(path)).values())
            assert count >= max(last, said)
            last, said = count, int(writer.stdout.readline())
    finally:
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
        writer.wait()
        writer.stdout.close()
    completed = int(rest[-1]) if rest else said
    assert sum(sum(slots[:-1]) for slots in values(read_file(path)).values()) >= completed


def reason(path: Path) -> str:
    with pytest.raises(PageError) as caught:
        PageReader().update(read_file(path))
    return caught.value.reason


def test_what_is_no_page_is_refused_with_its_reason(page: Page, tmp_path: Path) -> None:
    """Files that are cut short, foreign, newer or broken are named so and never believed."""
    page.allocate(COUNTER, ["a"])
    good = read_file(written(page))
    other = tmp_path / "other"
    for expected, content in {
        "truncated": good[: HEADER_BYTES + 16],
        "foreign": b"x" * 4096,
        "version": good[:8] + b"\xff" + good[9:],
        "corrupt": good[:HEADER_BYTES] + b"\xff" * (len(good) - HEADER_BYTES),
    }.items():
        other.write_bytes(content)
        assert reason(other) == expected
    other.write_bytes(b"")
    assert reason(other) == "truncated"


def test_only_regular_files_are_read(page: Page, tmp_path: Path) -> None:
    """A link is not followed, a pipe does not block, a directory is no page."""
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(written(page))
    os.mkfifo(pipe)
    assert reason(link) == "unreadable"
    assert reason(pipe) == "foreign"
    assert reason(tmp_path) == "foreign"
    assert reason(tmp_path / "missing") == "unreadable"


@given(st.data())
def test_a_reader_survives_anything(data: st.DataObject) -> None:
    """Whatever bytes are broken in a page, the reader reads it or raises PageError."""
    page = Page.anonymous(Clock(), capacity=1 << 14)
    page.allocate(COUNTER, ["a"])
    page.allocate(TIMES, ["b"])
    broken = bytearray(page.view[: page.used])
    for _ in range(data.draw(st.integers(1, 8))):
        place = data.draw(st.integers(0, len(broken) - 1))
        broken[place] = data.draw(st.integers(0, 255))
    try:
        values(bytes(broken))
    except PageError as error:
        assert error.reason in PageError.REASONS  # noqa: PT017 - either way is right
