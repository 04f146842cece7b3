"""Workers share a directory: nothing the dead have counted is lost or counted twice."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from loopscope.core import group as group_module
from loopscope.core.clock import Clock
from loopscope.core.group import (
    ENDS,
    STARTS,
    WORKERS,
    Group,
    UnsafeDirectoryError,
    make_safe,
    remove_if_deserted,
)
from loopscope.core.merge import ReadPage, merge
from loopscope.core.metric import Metric
from loopscope.core.page import Labels, Page, PageError, PageFullError, read_open

DONE = Metric("done_total", "counter", "Done.", ("route",))
TIMES = Metric("time_seconds", "histogram", "Time.", (), "seconds", (0.1, 1.0))
IN_USE = Metric("in_use", "gauge", "In use.")

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def group_in(directory: Path) -> Group:
    """A group as a worker sees it that keeps no page itself."""
    return Group(directory, Clock(), own=lambda: None)


def write(page: Page, done: float = 1.0, route: str = "/") -> None:
    page.slots[page.allocate(DONE, (route,))] = done
    base = page.allocate(TIMES)
    for offset, value in enumerate((1.0, 2.0, 3.0, 7.5)):
        page.slots[base + offset] = value
    page.slots[page.allocate(IN_USE)] = 5.0


def live(directory: Path, done: float = 1.0, route: str = "/") -> Page:
    """A worker that has counted and goes on."""
    page = Page.in_directory(directory, Clock())
    write(page, done, route)
    return page


def killed(directory: Path, done: float = 1.0, route: str = "/") -> Path:
    """What a worker leaves that had no time to say good-bye."""
    page = live(directory, done, route)
    path = page.path
    assert path is not None
    page.abandon()  # the lock goes with the file, and nothing is written any more
    return path


def closed(directory: Path, done: float = 1.0) -> Path:
    page = live(directory, done)
    page.close()
    assert page.path is not None
    return page.path


def values(pages: list[ReadPage], metric: Metric) -> dict[Labels, list[float]]:
    for family in merge(pages):
        if family.metric.name == metric.name:
            return {labels: family.values(raw) for labels, raw in family.rows.items()}
    return {}


def done(group: Group) -> float:
    return sum(value for (value,) in values(group.pages(), DONE).values())


def ends(group: Group) -> dict[str, float]:
    return {how: value for (how,), (value,) in values(group.pages(), ENDS).items()}


def published(group: Group, metric: Metric) -> float:
    """What is said of the workers themselves, as of the latest look."""
    (family,) = [family for family in group.families() if family.metric == metric]
    (raw,) = family.rows.values()
    return family.values(raw)[0]


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@contextmanager
def child(body: Callable[[], object]) -> Iterator[int]:
    """A forked child that runs ``body``, and is killed in the end."""
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os._exit(0)
        except BaseException:
            os._exit(1)
    try:
        yield pid
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def status(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_the_counts_of_the_dead_stand_and_their_gauges_do_not(tmp_path: Path) -> None:
    """Counters and histograms add up over the living, the dead and the folded; no file is left."""
    group, worker = group_in(tmp_path), live(tmp_path, 100)
    killed(tmp_path, 10)
    for _ in range(2):
        pages = group.pages()
        assert values(pages, DONE) == {("/",): [110]}
        assert values(pages, TIMES) == {(): [2, 4, 6, 15]}
        assert values(pages, IN_USE) == {(): [5]}
        assert group.alive == 1
        group.fold()
    assert names(tmp_path) == {"archive", "lock", worker.path.name}  # type: ignore[union-attr]
    assert not group.has_dead
    worker.close()


def test_the_archive_outlives_generations(tmp_path: Path) -> None:
    """Workers come and go: what all of them have counted stands, in one file."""
    group = group_in(tmp_path)
    for generation in range(1, 8):
        killed(tmp_path, 1, f"/{generation}")
        closed(tmp_path, 2)
        closed(tmp_path, 3)
        assert group.fold() == 3
        assert group.fold() == 0
        assert ends(group) == {"killed": generation, "closed": 2 * generation}
        assert done(group) == 6 * generation
    assert values(group.pages(), TIMES) == {(): [21, 42, 63, 157.5]}
    assert names(tmp_path) == {"archive", "lock"}


def test_every_worker_that_started_is_counted_once(tmp_path: Path) -> None:
    """Alive, dead or folded long ago, the one that asks included: beyond the first, restarts."""
    group = Group(tmp_path, Clock(), own=lambda: tmp_path / "ours.page")
    workers = [live(tmp_path), live(tmp_path)]
    for started in (4, 6, 8):
        killed(tmp_path)
        closed(tmp_path)
        for when in ("before folding", "after it"):
            group.pages()
            assert published(group, STARTS) == started + 1, when
            assert published(group, WORKERS) == 3
            group.fold()
    for worker in workers:
        worker.close()
    group.pages()
    assert published(group, STARTS) == 9
    assert published(group, WORKERS) == 1


def test_more_dead_than_can_be_in_memory_are_folded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are folded some at a time, all in one go."""
    monkeypatch.setattr(group_module, "_BATCH", 3)
    for _ in range(8):
        killed(tmp_path)
    group = group_in(tmp_path)
    assert group.fold() == 8
    assert done(group) == 8
    assert ends(group) == {"killed": 8}


def test_a_metric_that_has_changed_is_added_up_as_long_as_that_makes_sense(tmp_path: Path) -> None:
    """A new help text is no new metric. Other bounds are, but those counts are kept as well."""
    reworded = Metric(DONE.name, "counter", "What has been done.", DONE.labels)
    coarser = Metric(TIMES.name, "histogram", TIMES.help, (), "seconds", (1.0,))
    killed(tmp_path, 10)
    newer = Page.in_directory(tmp_path, Clock())
    newer.slots[newer.allocate(reworded, ("/",))] = 5
    base = newer.allocate(coarser)
    newer.slots[base] = 4
    newer.abandon()
    group = group_in(tmp_path)
    group.fold()
    killed(tmp_path, 1)
    group.fold()
    pages = group.pages()
    assert values(pages, DONE) == {("/",): [16]}
    shapes = {
        family.metric.bounds: family.values(family.rows[()])
        for family in merge(pages, every_shape=True)
        if family.metric.name == TIMES.name
    }
    assert shapes == {(0.1, 1.0): [2, 4, 6, 15], (1.0,): [4, 0, 0]}


class Killed(BaseException):
    """Whoever folds is gone, with everything that would have come next."""


STEPS = ("open", "rename", "unlink", "posix_fallocate", "ftruncate", "flock")


def fail_at(monkeypatch: pytest.MonkeyPatch, fatal: int, *, before: bool) -> Iterator[int]:
    """End in ``Killed`` at the ``fatal``-th call that touches a file, and at all that follow."""
    steps = count(1)

    def wrap(owner: object, name: str) -> None:
        original = getattr(owner, name)

        def step(*arguments: object, **named: object) -> object:
            number = next(steps)
            if number > fatal or (before and number == fatal):
                raise Killed
            result = original(*arguments, **named)
            if number == fatal:
                raise Killed
            return result

        monkeypatch.setattr(owner, name, step)

    for name in ("open", "posix_fallocate", "ftruncate"):
        wrap(os, name)
    for name in ("rename", "unlink"):
        wrap(Path, name)
    wrap(fcntl, "flock")
    return steps


def fold_and_die(directory: Path, fatal: int, *, before: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        fail_at(patch, fatal, before=before)
        try:
            group_in(directory).fold()
        except BaseException:
            os._exit(7)
    os._exit(0)


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_whoever_folds_may_be_killed_at_any_step(tmp_path: Path, *, before: bool) -> None:
    """Around every single system call: all is counted once, then and after the next fold."""
    for fatal in count(1):
        directory = tmp_path / str(fatal)
        directory.mkdir()
        killed(directory, 1)
        group_in(directory).fold()
        for number in (10, 100):
            killed(directory, number)
        with child(lambda: fold_and_die(directory, fatal, before=before)) as pid:  # noqa: B023
            code = status(pid)
        group = group_in(directory)
        assert done(group) == 111, fatal
        assert group.fold() in {0, 2}
        assert done(group) == 111, fatal
        assert ends(group) == {"killed": 3}
        for path in directory.glob("*.new"):
            os.utime(path, (0, 0))
        group.fold()
        assert names(directory) == {"archive", "lock"}
        if code == 0:
            break
    assert fatal > 10


LIVES = (0.05, 0.11, 0.17, 0.03, 0.2, 0.07, 0.13, 0.15)
"""Seconds until the next kill."""


def die_again_and_again(directory: Path) -> None:
    """Workers that end, one after the other, and somebody who folds them."""
    group = group_in(directory)
    for number in count():
        killed(directory)
        if number % 3 == 0:
            group.fold()


def test_readers_see_no_count_go_back_while_there_is_folding_and_killing(tmp_path: Path) -> None:
    """Totals only rise, and in the end are what was done, whoever was killed and whenever."""
    reader, seen = group_in(tmp_path), 0.0
    for patience in LIVES:
        with child(lambda: die_again_and_again(tmp_path)):
            until = time.monotonic() + patience
            while time.monotonic() < until:
                now = done(reader)
                assert now >= seen
                assert reader.skipped == {}
                seen = now
    for path in tmp_path.glob("*.new"):
        os.utime(path, (0, 0))
    total = done(reader)
    reader.fold()
    assert done(reader) == total >= seen
    assert total <= ends(reader)["killed"] <= total + len(LIVES)  # some had not counted yet
    assert names(tmp_path) == {"archive", "lock"}


def test_two_that_fold_do_not_get_in_each_others_way(tmp_path: Path) -> None:
    """One folds, the other finds nothing to do."""

    def fold_for_ever() -> None:
        group = group_in(tmp_path)
        while True:
            group.fold()

    with child(fold_for_ever), child(fold_for_ever):
        for _ in range(100):
            killed(tmp_path)
    group = group_in(tmp_path)
    group.fold()
    assert done(group) == 100
    assert ends(group) == {"killed": 100}


def test_a_reader_overtaken_by_two_folds_counts_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page read, folded, deleted and forgotten by the next archive before that is read."""
    killed(tmp_path, 10)
    reader, other = group_in(tmp_path), group_in(tmp_path)
    overtaken = False

    def overtake(file: int, path: Path) -> bytes:
        nonlocal overtaken
        buffer = read_open(file, path)
        if not overtaken:
            overtaken = True
            assert other.fold() == 1
            killed(tmp_path, 100)
            assert other.fold() == 1
        return buffer

    monkeypatch.setattr(group_module, "read_open", overtake)
    assert done(reader) == 110


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "truncated"), (b"garbage" * 100, "foreign"), (None, "corrupt")],
    ids=["empty", "garbage", "broken"],
)
def test_a_damaged_archive_is_set_aside_and_said_to_be(
    tmp_path: Path, content: bytes | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be read is kept for somebody who can, and counting goes on."""
    killed(tmp_path, 10)
    group_in(tmp_path).fold()
    archive = tmp_path / "archive"
    whole = archive.read_bytes()
    broken = whole[:256] + b"\xff" * 64 + whole[320:] if content is None else content
    archive.write_bytes(broken)
    group = group_in(tmp_path)
    killed(tmp_path, 1)
    assert done(group) == 1
    assert group.skipped == {reason: 1}
    assert group.fold() == 1
    assert "kept as" in caplog.text
    assert done(group) == 1
    assert group.skipped == {"damaged archive": 1}
    (aside,) = tmp_path.glob("damaged-archive-*")
    assert aside.read_bytes() == broken


@pytest.mark.parametrize("kind", ["directory", "link", "pipe"])
def test_what_is_no_archive_is_set_aside(tmp_path: Path, kind: str) -> None:
    """Nothing is read or written through it."""
    home = tmp_path / "home"
    home.mkdir()
    (tmp_path / "target").write_text("precious")
    archive = home / "archive"
    if kind == "directory":
        archive.mkdir()
    elif kind == "link":
        archive.symlink_to(tmp_path / "target")
    else:
        os.mkfifo(archive)
    killed(home, 1)
    group = group_in(home)
    group.fold()
    assert done(group) == 1
    assert (tmp_path / "target").read_text() == "precious"
    assert len(list(home.glob("damaged-archive-*"))) == 1


def test_an_archive_that_cannot_be_read_just_now_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files, say: the fold does not happen, and later all is there."""
    killed(tmp_path, 10)
    group_in(tmp_path).fold()
    killed(tmp_path, 1)
    group = group_in(tmp_path)

    def no_more_files(path: Path) -> bytes:
        raise PageError("unreadable", "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(group_module, "read_file", no_more_files)
        with pytest.raises(OSError, match="too many"):
            group.fold()
        assert done(group) == 1
        assert group.skipped == {"unreadable": 1}
    assert done(group) == 11
    group.fold()
    assert done(group) == 11


def test_a_full_disk_leaves_all_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No archive is better than half of one: the pages stay, and are folded once there is room."""
    killed(tmp_path, 10)
    group = group_in(tmp_path)
    group.fold()
    killed(tmp_path, 1)
    before = names(tmp_path)

    def no_space(fd: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", no_space)
        with pytest.raises(OSError, match="No space"):
            group.fold()
    assert names(tmp_path) == before
    assert done(group) == 11
    with monkeypatch.context() as patch:
        patch.setattr(Page, "allocate", _no_room)
        with pytest.raises(PageFullError):
            group.fold()
    assert names(tmp_path) == before
    group.fold()
    assert done(group) == 11


def _no_room(*_: object) -> int:
    raise PageFullError("no room")


def test_pages_that_cannot_be_deleted_are_not_counted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many folds later."""
    group = group_in(tmp_path)
    stubborn = killed(tmp_path, 10)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path == stubborn:
            raise PermissionError(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    for generation in range(3):
        assert group.fold() == 1
        assert stubborn.exists()
        assert done(group) == 10 + generation
        killed(tmp_path, 1)
    monkeypatch.undo()
    group.fold()
    assert not stubborn.exists()
    assert done(group) == 13


def test_a_file_being_made_is_left_to_who_makes_it(tmp_path: Path) -> None:
    """However old it says it is, as long as it is locked; what nobody makes goes after a while."""
    fresh, old, making = (tmp_path / f"{number}.page.new" for number in range(3))
    for path in (fresh, old, making):
        path.touch()
    for path in (old, making):
        os.utime(path, (0, 0))
    (tmp_path / "archive.17").touch()
    (tmp_path / "archive.18.new").touch()
    (tmp_path / "notes.new").touch()
    os.utime(tmp_path / "notes.new", (0, 0))
    with making.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        group_in(tmp_path).fold()
    assert names(tmp_path) == {fresh.name, making.name, "lock", "notes.new"}


def attack(directory: Path, outside: Path) -> dict[str, int]:
    """Everything that is no page; how often each reason should be given."""
    valid = killed(outside, 1000)
    (directory / "garbage.page").write_bytes(os.urandom(5000))
    (directory / "empty.page").touch()
    (directory / "short.page").write_bytes(valid.read_bytes()[:300])
    (directory / "version.page").write_bytes(b"LOOPSCP\0\2" + bytes(500))
    with (directory / "huge.page").open("wb") as file:
        file.truncate(10 << 30)
    with (directory / "huge-used.page").open("wb") as file:
        head = bytearray(valid.read_bytes()[:256])
        head[56:64] = (9 << 30).to_bytes(8, "little")
        file.write(head)
        file.truncate(10 << 30)
    (directory / "link.page").symlink_to(valid)
    (directory / "dangling.page").symlink_to(outside / "nothing")
    (directory / "directory.page").mkdir()
    os.mkfifo(directory / "pipe.page")
    return {"foreign": 6, "truncated": 2, "version": 1, "corrupt": 1}


def test_what_is_no_page_is_skipped_and_counted_and_left_alone(tmp_path: Path) -> None:
    """Garbage, links, pipes, directories and monsters: never followed, never fatal, never gone."""
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    reasons = attack(home, outside)
    there, elsewhere = names(home), names(outside)
    killed(home, 1)
    group = group_in(home)
    for _ in range(2):
        assert done(group) == 1
        assert group.skipped == reasons
        group.fold()
    assert names(home) == {*there, "archive", "lock"}
    assert names(outside) == elsewhere


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_somebody_elses_file_is_not_believed(tmp_path: Path) -> None:
    """It is skipped and counted, and stays where it is."""
    path = killed(tmp_path, 1000)
    os.chown(path, 12345, 12345)
    group = group_in(tmp_path)
    assert done(group) == 0
    assert group.skipped == {"foreign": 1}
    assert group.fold() == 0
    assert path.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_what_may_not_be_read_is_skipped(tmp_path: Path) -> None:
    """A page without permissions costs its own counts only."""
    tmp_path.chmod(0o755)
    for above in tmp_path.parents[:2]:
        above.chmod(above.stat().st_mode | 0o011)
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 12345, 12345)

    def as_somebody_else() -> None:
        os.setuid(12345)
        killed(home, 10).chmod(0)
        killed(home, 1)
        group = group_in(home)
        assert done(group) == 1
        assert group.skipped == {"unreadable": 1}
        assert group.fold() == 1
        assert done(group) == 1

    with child(as_somebody_else) as pid:
        assert status(pid) == 0


def test_a_directory_of_very_many_files_costs_a_bounded_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many names are looked at, so many pages are read; that there are more is counted."""
    monkeypatch.setattr(group_module, "_MOST_PAGES", 3)
    for _ in range(5):
        killed(tmp_path)
    group = group_in(tmp_path)
    assert done(group) == 3
    assert group.skipped == {"surplus": 2}
    group.fold()
    group.fold()
    assert done(group) == 5
    monkeypatch.setattr(group_module, "_MOST_FILES", 50)
    for number in range(200):
        (tmp_path / f"{number}.txt").touch()
    group.pages()
    assert group.skipped == {"surplus": 1}


def test_a_directory_that_is_taken_away_costs_the_others_figures_only(tmp_path: Path) -> None:
    """Somebody has tidied up: it is counted, not raised."""
    group = group_in(tmp_path / "gone")
    assert group.pages() == []
    assert group.skipped == {"unreadable": 1}


@pytest.mark.parametrize("kind", ["file", "link", "dangling", "writable"])
def test_a_directory_that_is_not_safe_is_refused(tmp_path: Path, kind: str) -> None:
    """Somebody else could read or forge what is in there."""
    path = tmp_path / "home"
    if kind == "file":
        path.touch()
    elif kind == "link":
        (tmp_path / "target").mkdir()
        path.symlink_to(tmp_path / "target")
    elif kind == "dangling":
        path.symlink_to(tmp_path / "target")
    else:
        path.mkdir()
        path.chmod(0o777)
    with pytest.raises(OSError, match=str(path)):
        make_safe(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives directories away")
def test_somebody_elses_directory_is_refused(tmp_path: Path) -> None:
    """Even if nobody but its owner may write to it."""
    path = tmp_path / "home"
    path.mkdir(mode=0o700)
    os.chown(path, 12345, 12345)
    with pytest.raises(UnsafeDirectoryError, match="belongs to user 12345"):
        make_safe(path)


def test_a_directory_that_is_missing_is_made_for_this_user_only(tmp_path: Path) -> None:
    """And is good to use from then on."""
    make_safe(tmp_path / "a" / "b")
    make_safe(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_worker_that_is_closed_is_dead_though_its_child_lives(tmp_path: Path) -> None:
    """A child that never heard of the fork has the file open, but not locked."""
    page = live(tmp_path)
    with child(signal.pause):
        page.close()
        group = group_in(tmp_path)
        assert group.fold() == 1


def test_a_child_forked_during_a_fold_does_not_keep_others_from_folding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if it never lets go of the lock's file, nor of a page's that was just read."""
    killed(tmp_path)
    group, children = group_in(tmp_path), list[int]()
    killed(tmp_path)
    group.fold()
    killed(tmp_path)

    def fork(path: Path) -> bool:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        children.append(pid)
        return original(path)

    original = os.path.lexists
    monkeypatch.setattr(os.path, "lexists", fork)
    try:
        group.fold()
        assert children
        monkeypatch.undo()
        killed(tmp_path)
        assert group_in(tmp_path).fold() == 1
        assert done(group) == 4
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_a_child_that_lets_go_leaves_its_parents_locks_alone(tmp_path: Path) -> None:
    """After a fork the parent still speaks for all; when it is silent, the child does not."""
    group, asking = group_in(tmp_path), group_in(tmp_path)

    def let_go() -> None:
        group.abandon()
        group.abandon()

    assert not asking.is_spoken_for()
    group.speak()
    with child(let_go) as pid:
        assert status(pid) == 0
        assert asking.is_spoken_for()
    with child(signal.pause):
        group.hush()
        assert not asking.is_spoken_for()


def test_who_asks_at_the_wrong_moment_does_not_silence_anybody(tmp_path: Path) -> None:
    """One who begins to speak waits for whoever is just asking, and is heard."""
    group, asking = group_in(tmp_path), group_in(tmp_path)
    with (tmp_path / "voice").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        asked = threading.Timer(0.05, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        asked.start()
        group.speak()
        asked.join()
    assert asking.is_spoken_for()
    group.hush()


def test_a_lock_whose_file_was_taken_away_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then somebody else may have another of that name: nothing is folded this time."""
    killed(tmp_path)
    group = group_in(tmp_path)
    flock = fcntl.flock

    def take_away(file: int, how: int) -> None:
        (tmp_path / "lock").unlink(missing_ok=True)
        (tmp_path / "lock").touch()
        flock(file, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", take_away)
        assert group.fold() == 0
    assert group.fold() == 1


def grow_old(directory: Path) -> None:
    for path in (*directory.iterdir(), directory):
        os.utime(path, (0, 0), follow_symlinks=False)


def test_who_is_alive_is_told_by_number(tmp_path: Path) -> None:
    """By what the page says; the dead, what is no page and oneself are left out."""
    page, own = live(tmp_path), live(tmp_path)
    assert page.path is not None
    killed(tmp_path)
    (tmp_path / "7-7.page").write_bytes(b"nothing")
    group = Group(tmp_path, Clock(), own=lambda: own.path)
    assert group.living() == {page.path: str(os.getpid())}
    page.close()
    assert group.living() == {}
    own.close()


def test_who_keeps_no_page_is_no_worker(tmp_path: Path) -> None:
    """A bystander counts the workers, and not itself."""
    page, group = live(tmp_path), group_in(tmp_path)
    own = Group(tmp_path, Clock(), own=lambda: page.path)
    for each in (group, own):
        each.pages()
        (workers, *_) = each.families()
        assert [workers.values(raw) for raw in workers.rows.values()] == [[1.0]]
    page.close()


def test_a_dead_workers_socket_goes_with_its_page(tmp_path: Path) -> None:
    """Also where whoever folded was killed in between; that of a living worker stays."""
    page, dead = live(tmp_path), killed(tmp_path)
    assert page.path is not None
    for path in (page.path, dead, tmp_path / "7-7.page"):
        leave_socket(path.with_suffix(".sock"))
    group = group_in(tmp_path)
    assert group.fold() == 1
    assert {path.name for path in tmp_path.glob("*.sock")} == {f"{page.path.stem}.sock"}
    page.close()


def leave_socket(path: Path) -> None:
    """What is left of a socket nobody listens on any more."""
    os.mknod(path, stat.S_IFSOCK | 0o600)


def test_a_deserted_directory_is_removed(tmp_path: Path) -> None:
    """With all that its workers have left, whatever state it was left in."""
    home = tmp_path / "home"
    killed(home)
    group = group_in(home)
    group.fold()
    group.speak()
    group.hush()
    killed(home)
    (home / "archive.17.new").touch()
    (home / "1-2.page.new").touch()
    leave_socket(home / "1-2.sock")
    assert not remove_if_deserted(home)
    grow_old(home)
    assert remove_if_deserted(home)
    assert not home.exists()


def test_who_knows_that_all_have_ended_need_not_wait(tmp_path: Path) -> None:
    """Though somebody who lives still keeps the directory."""
    home = tmp_path / "home"
    killed(home)
    page = live(home)
    assert not remove_if_deserted(home, after=0.0)
    page.close()
    assert not remove_if_deserted(home)
    assert remove_if_deserted(home, after=0.0)
    assert not home.exists()


def test_a_directory_in_which_somebody_lives_stays(tmp_path: Path) -> None:
    """However long ago it was that anything changed."""
    page = live(tmp_path)
    killed(tmp_path)
    there = names(tmp_path)
    grow_old(tmp_path)
    assert not remove_if_deserted(tmp_path)
    assert names(tmp_path) == there
    page.close()


@pytest.mark.parametrize("kind", ["file", "directory.page", "link.page", "socket"])
def test_a_directory_that_holds_anything_else_stays(tmp_path: Path, kind: str) -> None:
    """Nothing is deleted then, not even what is ours."""
    home = tmp_path / "home"
    killed(home)
    path = home / kind
    if kind == "file":
        path.touch()
    elif kind == "link.page":
        path.symlink_to(tmp_path)
    elif kind == "socket":
        leave_socket(path)
    else:
        path.mkdir()
    there = names(home)
    grow_old(home)
    assert not remove_if_deserted(home)
    assert names(home) == there
