"""The process' own figures, checked against the operating system by other roads than psutil's."""

from __future__ import annotations

import os
import resource
import threading
import time
from pathlib import Path
from typing import NoReturn

import psutil
import pytest

from loopscope.core.clock import Clock
from loopscope.core.page import Page, PageReader
from loopscope.sources import process
from loopscope.sources.process import ProcessSource


@pytest.fixture
def page() -> Page:
    return Page.anonymous(Clock(), capacity=1 << 16)


def read(page: Page) -> dict[tuple[str, ...], float]:
    """Every value in the page, by metric name and labels."""
    reader = PageReader()
    reader.update(page.view)
    return {(s.metric.name, *s.labels): page.slots[s.runs[0][0]] for s in reader.series}


def test_every_declared_metric_is_read(page: Page) -> None:
    """Where the platform has everything, every declared metric gets a value above zero."""
    ProcessSource(page).refresh()
    values = read(page)
    assert {name for name, *_ in values} == {metric.name for metric in process.METRICS}
    switches = {key: values.pop(key) for key in list(values) if key[0] == process.SWITCHES.name}
    assert all(value > 0 for value in values.values())
    assert [labels for _, *labels in switches] == [["voluntary"], ["involuntary"]]


def test_gauges_are_kept_apart_by_worker() -> None:
    """No gauge of a process may be summed over workers."""
    assert all(metric.per_worker for metric in process.METRICS if metric.kind == "gauge")


def test_nothing_is_read_before_refresh(page: Page) -> None:
    """Making the source touches no file and publishes nothing; that is for the first refresh."""
    ProcessSource(page)
    assert not read(page)


def test_cpu_time_grows_by_what_was_burnt(page: Page) -> None:
    """CPU seconds grow by at least the CPU time a thread burns, to the kernel's tick."""
    source = ProcessSource(page)
    source.refresh()
    before, burnt = read(page)["process_cpu_seconds_total",], time.thread_time()
    while time.thread_time() - burnt < 0.1:
        pass
    source.refresh()
    ticks = 2 / os.sysconf("SC_CLK_TCK")  # user and system time are each rounded down
    assert read(page)["process_cpu_seconds_total",] - before >= 0.1 - ticks


def test_memory_is_in_bytes(page: Page) -> None:
    """Resident memory grows by about what was touched, and virtual memory exceeds it."""
    source = ProcessSource(page)
    source.refresh()
    before = read(page)["process_resident_memory_bytes",]
    touched = bytearray(os.urandom(1 << 20)) * 64
    source.refresh()
    values = read(page)
    assert values["process_resident_memory_bytes",] - before > 0.5 * len(touched)
    assert values["process_virtual_memory_bytes",] > values["process_resident_memory_bytes",]


def test_an_opened_file_is_counted(page: Page, tmp_path: Path) -> None:
    """Opening ten files raises the number of open descriptors by ten."""
    source = ProcessSource(page)
    source.refresh()
    before = read(page)["process_open_fds",]
    files = [(tmp_path / str(number)).open("w") for number in range(10)]
    source.refresh()
    after = read(page)["process_open_fds",]
    for file in files:
        file.close()
    assert after - before == 10


def test_the_descriptor_limit_is_the_soft_one_and_follows_it(page: Page) -> None:
    """A soft limit lowered at run time is the published limit at the next refresh."""
    source = ProcessSource(page)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowered = 512
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowered, hard))
    try:
        source.refresh()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert read(page)["process_max_fds",] == lowered


def test_no_limit_at_all_is_not_negative(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unlimited process has a limit larger than any use, not one of -1."""
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _: unlimited)
    ProcessSource(page).refresh()
    assert read(page)["process_max_fds",] >= 2.0**63


def test_the_start_is_in_the_past_and_stays(page: Page) -> None:
    """The start time is before now, in Unix seconds, and the same at every refresh."""
    source = ProcessSource(page)
    source.refresh()
    first = read(page)["process_start_time_seconds",]
    source.refresh()
    assert read(page)["process_start_time_seconds",] == first
    assert 0 < first <= time.time() + 1  # the kernel counts from a boot time of whole seconds


def test_a_thread_is_counted_while_it_lives(page: Page) -> None:
    """A started thread raises the thread count by one, and its end lowers it again."""
    source = ProcessSource(page)
    source.refresh()
    before = read(page)["process_threads",]
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    source.refresh()
    during = read(page)["process_threads",]
    release.set()
    thread.join()
    assert during - before == 1


def test_sleeping_is_a_voluntary_switch(page: Page) -> None:
    """Each sleep gives up the CPU at least once, and counters never go back."""
    source = ProcessSource(page)
    source.refresh()
    before = read(page)
    for _ in range(20):
        time.sleep(0.001)
    source.refresh()
    after = read(page)
    voluntary = (process.SWITCHES.name, "voluntary")
    involuntary = (process.SWITCHES.name, "involuntary")
    assert after[voluntary] - before[voluntary] >= 20
    assert after[involuntary] >= before[involuntary]


@pytest.mark.parametrize("error", [psutil.AccessDenied(), NotImplementedError(), OSError()])
def test_what_cannot_be_had_has_no_series(
    page: Page, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A figure refused from the start is absent, not zero, and the others are there."""

    def refuse(_: psutil.Process) -> NoReturn:
        raise error

    monkeypatch.setattr(psutil.Process, "num_ctx_switches", refuse)
    ProcessSource(page).refresh()
    names = {name for name, *_ in read(page)}
    assert names == {metric.name for metric in process.METRICS} - {process.SWITCHES.name}


def test_a_method_the_platform_lacks_has_no_series(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where psutil has no context switches at all, making the source does not fail."""
    monkeypatch.delattr(psutil.Process, "num_ctx_switches")
    ProcessSource(page).refresh()
    assert process.SWITCHES.name not in {name for name, *_ in read(page)}


def test_one_failing_figure_does_not_cost_the_others(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure that fails later keeps its value and is reported; those after it are still read."""

    def refuse(_: int) -> NoReturn:
        raise PermissionError

    source = ProcessSource(page)
    source.refresh()
    before = read(page)
    monkeypatch.setattr(resource, "getrlimit", refuse)
    time.sleep(0.001)
    with pytest.raises(PermissionError):
        source.refresh()
    after = read(page)
    voluntary = (process.SWITCHES.name, "voluntary")
    assert after["process_max_fds",] == before["process_max_fds",]
    assert after[voluntary] > before[voluntary]
