"""Pages: written by one process, read by any, whatever happens to the writer."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
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


@given(st.lists(st.tuples(st.text(), st.floats(-1e300, 1e300)), max_size=20))
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


def test_an_abandoned_page_changes_no_more(tmp_path: Path) -> None:
    """It has no room for anything and is not even marked as closed: that is its owner's to do."""
    page = Page.in_directory(tmp_path, Clock())
    page.allocate(COUNTER, ["a"])
    (path,) = tmp_path.iterdir()
    before = path.read_bytes()
    page.abandon()
    with pytest.raises(PageFullError):
        page.allocate(COUNTER, ["b"])
    page.close(remove=True)
    assert path.read_bytes() == before


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
        if done % 50 == 0 and done < 50_000:  # a page to be read 30 times, from scratch
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


def opened_in(directory: Path) -> list[Path]:
    """What this process holds open of a directory."""
    opened = [entry.resolve() for entry in Path("/proc/self/fd").iterdir()]
    return [path for path in opened if path.is_relative_to(directory.resolve())]


def texts() -> st.SearchStrategy[str]:
    return st.text(max_size=20)


@st.composite
def metrics(draw: st.DrawFn) -> Metric:
    """Any metric that can be declared, names in any script."""
    kind: Any = draw(st.sampled_from(["counter", "gauge", "histogram"]))
    bounds = st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, unique=True)
    return Metric(
        draw(texts().filter(lambda name: not name.endswith("_total")))
        + ("_total" if kind == "counter" else ""),
        kind,
        draw(texts()),
        tuple(draw(st.lists(texts(), max_size=4))),
        draw(texts()),
        tuple(sorted(draw(bounds))) if kind == "histogram" else (),
        draw(st.booleans()),
    )


@given(st.data())
def test_any_metric_survives(data: st.DataObject) -> None:
    """Declarations, labels and every single slot come back, in order, from page and file alike."""
    page = Page.anonymous(Clock(), capacity=1 << 18)
    expected = []
    for metric in data.draw(st.lists(metrics(), max_size=6)):
        labels = tuple(data.draw(texts()) for _ in metric.labels)
        base = page.allocate(metric, labels)
        slots = [float(data.draw(st.integers(0, 1 << 53))) for _ in range(metric.slot_count)]
        for number, value in enumerate(slots):
            page.slots[base + number] = value
        expected.append((metric, labels, slots))
    assert page.series_count == len(expected)
    reader = PageReader()
    reader.update(page.view)
    found = [
        (series.metric, series.labels, memoryview(series.raw(page.view)).cast("d").tolist())
        for series in reader.series
    ]
    assert found == expected


def test_a_reader_takes_up_where_it_left_off(page: Page) -> None:
    """Reading again finds what is new, and nothing twice."""
    reader = PageReader()
    for count in range(1, 5):
        page.allocate(COUNTER, [str(count)])
        reader.update(read_file(written(page)))
        reader.update(read_file(written(page)))
        assert [series.labels for series in reader.series] == [
            (str(number),) for number in range(1, count + 1)
        ]


def test_what_is_allocated_starts_from_zero_and_is_nobody_elses() -> None:
    """No two series share a slot, and none lies in the header."""
    page = Page.anonymous(Clock(), capacity=1 << 16)
    taken = set(range(HEADER_BYTES // 8))
    for number in range(50):
        for metric in (COUNTER, TIMES):
            base = page.allocate(metric, [str(number)])
            slots = set(range(base, base + metric.slot_count))
            assert not slots & taken
            assert {page.slots[slot] for slot in slots} == {0.0}
            taken |= slots
    assert max(taken) < page.used // 8


def test_two_versions_of_a_metric_do_not_spoil_the_page(page: Page) -> None:
    """The same name declared differently is another metric to the page, not a broken record."""
    other = Metric("things_total", "counter", "Things.", ("kind", "colour"))
    page.allocate(COUNTER, ["a"])
    page.allocate(other, ["a", "red"])
    reader = PageReader()
    reader.update(page.view)
    assert [series.metric for series in reader.series] == [COUNTER, other]


@pytest.mark.parametrize("label", [404, None, b"GET", True])
def test_a_label_that_is_no_text_is_refused_before_it_is_written(page: Page, label: Any) -> None:
    """One sloppy label must not make readers refuse everything else in the page."""
    page.allocate(COUNTER, ["a"])
    with pytest.raises(ValueError, match="things_total"):
        page.allocate(COUNTER, [label])
    assert list(values(page.view)) == [("things_total", "a")]


def test_a_full_page_still_counts(page: Page) -> None:
    """What already has its slots goes on as before when no new series fits."""
    first = page.allocate(COUNTER, ["first"])
    with pytest.raises(PageFullError, match="no room"):
        while True:
            page.allocate(COUNTER, ["x" * 10_000])
    page.slots[first] += 1
    assert values(read_file(written(page)))["things_total", "first"] == [1.0]


def test_a_series_that_did_not_fit_may_be_asked_for_again(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once the disk has room again, so has the page, and the failed try left no mark."""
    with monkeypatch.context() as full:
        full.setattr(os, "posix_fallocate", lambda *_: os.pwrite(-1, b"", 0))
        with pytest.raises(PageFullError):
            page.allocate(COUNTER, ["x" * 300_000])
    page.allocate(COUNTER, ["y" * 300_000])
    assert [labels[0] for _, *labels in values(read_file(written(page)))] == ["y" * 300_000]


def test_a_page_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full from the start is an OSError; no file and no descriptor stay."""

    def no_space(*args: object) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(OSError, match="no space"):
        Page.in_directory(tmp_path, Clock())
    assert list(tmp_path.iterdir()) == []
    assert opened_in(tmp_path) == []


def test_a_missing_directory_is_made_for_its_owner_only(tmp_path: Path) -> None:
    """Nobody else may list, or plant files in, a directory we make."""
    Page.in_directory(tmp_path / "a" / "b", Clock(), capacity=4096).close(remove=True)
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_two_pages_of_one_process_do_not_meet(tmp_path: Path) -> None:
    """Each page is a file of its own."""
    pages = [Page.in_directory(tmp_path, Clock(), capacity=4096) for _ in range(3)]
    assert len(list(tmp_path.iterdir())) == 3
    for page in pages:
        page.close(remove=True)
    assert list(tmp_path.iterdir()) == []


def test_a_closed_page_lets_stragglers_write(page: Page) -> None:
    """A handle used after close, or twice closed, hurts no one."""
    slot = page.allocate(COUNTER, ["a"])
    page.close(remove=True)
    page.slots[slot] += 1
    page.close(remove=True)
    assert page.slots[slot] == 1.0


HEADER = bytes(Page.anonymous(Clock(), capacity=4096).view[:HEADER_BYTES])
DECLARED = asdict(COUNTER)


def page_of(*records: tuple[object, int]) -> bytes:
    """A page holding these keys, JSON values or raw bytes, each with that many slots."""
    body = b""
    for key, slot_count in records:
        raw = key if isinstance(key, bytes) else json.dumps(key).encode()
        raw += b" " * (-len(raw) % 8)
        body += struct.pack("=II", len(raw), slot_count) + raw + bytes(8 * slot_count)
    return HEADER[:56] + struct.pack("=Q", HEADER_BYTES + len(body)) + HEADER[64:] + body


def broken(buffer: bytes) -> PageError:
    with pytest.raises(PageError) as caught:
        PageReader().update(buffer)
    assert caught.value.reason == "corrupt"
    return caught.value


def test_the_pages_made_here_are_good() -> None:
    """A page put together by hand is read like one we wrote."""
    assert values(page_of((DECLARED, 0), ([0, "a"], 1))) == {("things_total", "a"): [0.0]}


@pytest.mark.parametrize(
    "key",
    [
        [-1, "a"], [1, "a"], [10**400, "a"], [1 << 64, "a"], [0.0, "a"], [True, "a"], [False, "a"],
        [None, "a"], ["0", "a"], [[0], "a"], [], [0], [0, "a", "b"], [0, 1], [0, None], [0, ["a"]],
        0, "0a", True, b"", b"[0", b"[0,'a']", b"\xff\xfe\x00", b"[0,\"\xff\"]",
        b"[" * 100_000, b"[" * 400 + b"]" * 400, b'{"name":' * 100_000,
    ],
    ids=lambda key: repr(key)[:20],
)  # fmt: skip
def test_a_key_that_names_no_declared_metric_is_corrupt(key: object) -> None:
    """Not the last metric for -1, not the second for True: a series is what it says or nothing."""
    assert len(str(broken(page_of((DECLARED, 0), (key, 1))))) < 1000


@pytest.mark.parametrize("slot_count", [0, 2, (1 << 32) - 1])
def test_a_series_with_other_slots_than_its_metric_is_corrupt(slot_count: int) -> None:
    """A counter has one slot; anything else would be read from its neighbours."""
    buffer = page_of((DECLARED, 0), ([0, "a"], 1))
    place = buffer.rindex(b'[0, "a"]') - 4
    broken(buffer[:place] + struct.pack("=I", slot_count) + buffer[place + 4 :])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", None), ("name", 3), ("name", ["a"]), ("help", 3), ("unit", None), ("unit", {}),
        ("kind", "summary"), ("kind", None), ("kind", ["histogram"]), ("kind", "gauge"),
        ("labels", "kind"), ("labels", None), ("labels", [1]), ("labels", {"kind": 1}),
        ("bounds", []), ("bounds", None), ("bounds", "123"), ("bounds", {"1": 2}),
        ("bounds", [2.0, 1.0]), ("bounds", [1.0, 1.0]), ("bounds", [float("nan")]),
        ("bounds", [1.0, float("inf")]), ("bounds", [-float("inf"), 1.0]), ("bounds", [10**400]),
        ("bounds", ["x"]), ("bounds", [[1.0]]), ("bounds", [None]),
    ],
    ids=lambda part: repr(part)[:20],
)  # fmt: skip
def test_a_declaration_that_makes_no_metric_is_corrupt(field: str, value: object) -> None:
    """Nothing is guessed: text is text, a list a list, bounds are finite and ascend."""
    broken(page_of(({**asdict(TIMES), field: value}, 0)))


@pytest.mark.parametrize("field", list(DECLARED))
def test_a_declaration_says_everything(field: str) -> None:
    """A field left out is corrupt; one this version does not know is ignored."""
    broken(page_of(({name: DECLARED[name] for name in DECLARED if name != field}, 0)))
    reader = PageReader()
    reader.update(page_of(({**DECLARED, "colour": "red"}, 0), ([0, "a"], 1)))
    assert reader.series[0].metric == COUNTER


def test_a_page_corrupt_further_on_is_not_taken_in_twice() -> None:
    """Trying a broken page again and again adds no series and so no memory."""
    reader, buffer = PageReader(), page_of((DECLARED, 0), ([0, "a"], 1), ([9, "b"], 1))
    for _ in range(3):
        with pytest.raises(PageError, match="undeclared"):
            reader.update(buffer)
        assert [series.labels for series in reader.series] == [("a",)]


def test_a_page_never_shrinks() -> None:
    """A log that is shorter than last time has been tampered with."""
    reader = PageReader()
    reader.update(page_of((DECLARED, 0), ([0, "a"], 1)))
    with pytest.raises(PageError, match="shrinks"):
        reader.update(page_of((DECLARED, 0)))


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(sorted(DECLARED)), inner, max_size=7),
    ),
    max_leaves=8,
)


def reads_or_refuses(buffer: bytes) -> None:
    reader = PageReader()
    try:
        reader.update(buffer)
    except PageError as error:
        assert error.reason in PageError.REASONS  # noqa: PT017 - either way is right
    for series in reader.series:
        for first, count in series.runs:
            assert HEADER_BYTES <= 8 * first < 8 * (first + count) <= len(buffer)
        assert len(series.labels) == len(series.metric.labels)


@given(st.lists(st.tuples(JSON, st.integers(0, 5)), max_size=4))
def test_a_reader_survives_any_keys(records: list[tuple[object, int]]) -> None:
    """Well-formed records with nonsense for keys are refused, never misread or tripped over."""
    reads_or_refuses(page_of((DECLARED, 0), (asdict(TIMES), 0), *records))


@given(st.fixed_dictionaries({name: st.one_of(st.just(DECLARED[name]), JSON) for name in DECLARED}))
def test_a_reader_survives_any_declaration(declaration: dict[str, object]) -> None:
    """Whatever a declaration says of itself, what follows is within the page."""
    reads_or_refuses(page_of((declaration, 0), ([0, "a"], 1), ([0], 1)))


@given(st.binary(max_size=600))
@example(b"")
@example(HEADER[:8])
@example(HEADER[:-1])
def test_a_reader_survives_any_bytes(anything: bytes) -> None:
    """On their own, behind our magic, or behind a good header."""
    reads_or_refuses(anything)
    reads_or_refuses(HEADER[:8] + anything)
    used = HEADER_BYTES + len(anything) // 8 * 8
    reads_or_refuses(HEADER[:56] + struct.pack("=Q", used) + HEADER[64:] + anything)


def test_a_file_cut_short_anywhere_is_truncated(page: Page, tmp_path: Path) -> None:
    """However much is missing, the reason is the same, and no series is half read."""
    page.allocate(COUNTER, ["a"])
    good, short = read_file(written(page)), tmp_path / "short"
    for length in range(len(good)):
        short.write_bytes(good[:length])
        assert reason(short) == "truncated"


@pytest.mark.parametrize("used", [0, 8, HEADER_BYTES - 8, HEADER_BYTES + 1, 1 << 40, (1 << 64) - 1])
def test_a_length_no_page_can_have_is_corrupt(tmp_path: Path, used: int) -> None:
    """A header is believed neither when it is too small, nor odd, nor vast: none of it is read."""
    path = tmp_path / "vast"
    path.write_bytes(HEADER[:56] + struct.pack("=Q", used) + HEADER[64:])
    os.truncate(path, 1 << 40)
    assert reason(path) == "corrupt"


def test_only_the_used_part_of_a_vast_file_is_read(page: Page) -> None:
    """A sparse file's size says nothing: what is in use decides how much is read."""
    page.allocate(COUNTER, ["a"])
    os.truncate(written(page), 1 << 40)
    buffer = read_file(written(page))
    assert len(buffer) == page.used
    assert values(buffer) == {("things_total", "a"): [0.0]}


def test_a_vast_hole_is_no_page(tmp_path: Path) -> None:
    """A terabyte of nothing is foreign at first sight."""
    path = tmp_path / "hole"
    path.touch()
    os.truncate(path, 1 << 40)
    assert reason(path) == "foreign"


def test_a_socket_or_a_dangling_link_is_unreadable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be opened is named so, and nothing waits for it."""
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert reason(Path("socket")) == "unreadable"
    Path("dangling").symlink_to("nowhere")
    assert reason(Path("dangling")) == "unreadable"


def test_refusing_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    """A broken file in the directory is met at every scrape: none may cost a descriptor."""
    foreign, pipe = tmp_path / "foreign", tmp_path / "pipe"
    foreign.write_bytes(bytes(4096))
    os.mkfifo(pipe)
    for _ in range(20):
        for path in (foreign, pipe, tmp_path, tmp_path / "missing"):
            reason(path)
    assert opened_in(tmp_path) == []


def test_series_can_share_slots(page: Page) -> None:
    """What is laid over slots shows what is in them: a histogram, and the counter of its events."""
    block = page.allocate_block(TIMES.slot_count)
    labels = tuple("x" for _ in TIMES.labels)
    last = TIMES.slot_count - 1
    page.lay(TIMES, labels, (block + 1, last), (block, 1))
    page.lay(COUNTER, ("a",), (block + 1, last))
    page.slots[block] = 0.5
    page.slots[block + 1] = 2.0
    page.slots[block + last] = 1.0
    found = values(page.view)
    assert found[(TIMES.name, *labels)] == [2.0, *[0.0] * (last - 2), 1.0, 0.5]
    assert found[(COUNTER.name, "a")] == [3.0]


def test_a_series_is_laid_only_over_slots_that_are_there(page: Page) -> None:
    """Neither beyond the end nor over the header, and never over too few."""
    with pytest.raises(ValueError, match="not allocated"):
        page.lay(COUNTER, ("a",), (page.used // 8, 1))
    with pytest.raises(ValueError, match="not allocated"):
        page.lay(COUNTER, ("a",), (0, 1))
    with pytest.raises(ValueError, match="slots"):
        page.lay(TIMES, tuple("x" for _ in TIMES.labels), (page.allocate_block(1), 1))


@pytest.mark.parametrize(
    "key",
    [
        [[1 << 40, 1], 0, "a"], [[0, 1], 0, "a"], [[36, 0], 0, "a"], [[36], 0, "a"],
        [[-1, 1], 0, "a"], [[36, -1], 0, "a"], [[True, 1], 0, "a"], [[36, 1]], [[[36, 1]], 0, "a"],
    ],
    ids=repr,
)  # fmt: skip
def test_a_series_laid_over_nothing_is_corrupt(key: object) -> None:
    """A reader never leaves the part of the page that is in use."""
    broken(page_of((None, 8), (DECLARED, 0), (key, 0)))
