"""The sentinel as a whole, without a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from loopscope.core.clock import Clock
from loopscope.core.group import Group
from loopscope.core.merge import Family
from loopscope.core.notes import Notes
from loopscope.core.page import Page
from loopscope.core.stall import Stall, as_json
from loopscope.sentinel.service import Sentinel
from loopscope.settings import resolve
from loopscope.sources.hangs import LOOKS, SENTINEL_CPU, SENTINEL_MEMORY
from loopscope.sources.stalls import IN_PROGRESS, STALL_SECONDS, STALLS


@pytest.fixture
def sentinel(tmp_path: Path) -> Iterator[Sentinel]:
    sentinel = Sentinel(tmp_path, resolve({"listen": "off", "directory": tmp_path}, {}))
    yield sentinel
    sentinel.stop()


def values(families: list[Family], name: str) -> dict[tuple[str, ...], float]:
    found = [family for family in families if family.metric.name == name]
    return {labels: each.values(raw)[0] for each in found for labels, raw in each.rows.items()}


def counted(page: Page, place: tuple[str, str, str], times: float) -> None:
    page.slots[page.allocate(STALLS, place)] = times


def test_it_publishes_itself(sentinel: Sentinel) -> None:
    """Its memory and CPU are what having it costs."""
    families = sentinel._pages.snapshot()
    (memory,) = values(families, SENTINEL_MEMORY.name).values()
    assert memory > 1 << 20
    assert values(families, SENTINEL_CPU.name)[()] > 0


def test_what_a_dead_worker_could_not_count_is_added(sentinel: Sentinel, tmp_path: Path) -> None:
    """To what others have counted at the same place."""
    page = Page.in_directory(tmp_path, Clock())
    counted(page, ("/r", "app.py f", "cpu"), 2.0)
    sentinel.watch.cut_short["/r", "app.py f", "cpu"] = (1, 3.5)
    sentinel.watch.cut_short["/other", "", "unknown"] = (1, 1.0)
    sentinel.watch.looks["seen"] = 4
    families = sentinel._pages.snapshot()
    assert values(families, STALLS.name) == {
        ("/r", "app.py f", "cpu"): 3.0,
        ("/other", "", "unknown"): 1.0,
    }
    assert values(families, STALL_SECONDS.name)["/r", "app.py f", "cpu"] == 3.5
    assert values(families, LOOKS.name) == {("seen",): 4.0}
    page.close()


def test_a_hang_is_in_progress_for_that_worker_alone(
    sentinel: Sentinel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker's own page says what was so before it hung; others' stay as they are."""
    page = Page.in_directory(tmp_path, Clock())
    page.slots[page.allocate(IN_PROGRESS)] = 0.25
    before = values(sentinel._pages.snapshot(), IN_PROGRESS.name)
    ((worker,),) = before
    monkeypatch.setattr(sentinel.watch, "held", lambda: {worker: 7.0, "1": 9.0})
    assert values(sentinel._pages.snapshot(), IN_PROGRESS.name) == {(worker,): 7.0}
    page.close()


def test_stalls_are_those_that_workers_noted(sentinel: Sentinel, tmp_path: Path) -> None:
    """With what was seen from outside, whether that is here or was noted by another sentinel."""
    own = as_json(Stall("own", 100.0, 2.0, worker="7"))
    seen = as_json(Stall("seen", 100.1, 1.8, worker="7", outside={"looks": 1}))
    for name, note in (("7-1", own), ("sentinel-6-1", seen)):
        notes = Notes(tmp_path / f"{name}.notes")
        notes.write(note)
        notes.close()
    (stall,) = sentinel._stalls("newest", 10)
    assert (stall["id"], stall["outside"]) == ("own", {"looks": 1})
    sentinel._note(seen)
    assert len(sentinel._stalls("newest", 10)) == 1


@pytest.mark.quiet_faults
def test_figures_go_on_though_watching_fails(
    sentinel: Sentinel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is looked into any more, and it is still seen when the last worker has ended."""

    def fail() -> float:
        raise RuntimeError

    page = Page.in_directory(tmp_path, Clock())
    monkeypatch.setattr(sentinel.watch, "round", fail)
    for _ in range(150):
        sentinel.round()
    assert sentinel._faults.counts == {"watch": 100}
    assert sentinel.watch.has_workers
    page.close()
    sentinel.round()
    assert not sentinel.watch.has_workers
    assert values(sentinel._pages.snapshot(), SENTINEL_CPU.name)


def test_it_is_no_worker(sentinel: Sentinel, tmp_path: Path) -> None:
    """It keeps no page, is not counted, and has nothing to fold."""
    families = sentinel._pages.snapshot()
    assert values(families, "loopscope_workers") == {(): 0.0}
    assert Group(tmp_path, Clock(), own=lambda: None).living() == {}
    assert not list(tmp_path.glob("*.page"))
