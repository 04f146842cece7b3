"""Notes: lines that outlive who wrote them, in files that stay small."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from loopscope.core import notes
from loopscope.core.notes import OLDER, SUFFIX, Notes, read


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / f"7-1{SUFFIX}"


def test_what_is_noted_can_be_read_at_once(path: Path) -> None:
    """In order, by anybody who knows the name; the file is for this user only."""
    written = Notes(path)
    written.write({"id": "1", "text": "später\n"})
    written.write({"id": "2"})
    assert read(path) == [{"id": "1", "text": "später\n"}, {"id": "2"}]
    assert path.stat().st_mode & 0o777 == 0o600
    written.close()


def test_nothing_noted_is_no_file(path: Path) -> None:
    """A worker that has nothing to tell leaves nothing behind."""
    written = Notes(path)
    written.close()
    assert not path.exists()
    assert read(path) == []


def test_notes_outlive_a_killed_writer(path: Path) -> None:
    """The kernel has a line as soon as ``write`` has returned."""
    child = os.fork()
    if not child:
        Notes(path).write({"id": "last"})
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert read(path) == [{"id": "last"}]


def test_files_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, of so many bytes at most, and the newest notes are in there."""
    monkeypatch.setattr(notes, "MOST_BYTES", 1000)
    written = Notes(path)
    for number in range(500):
        written.write({"id": number})
    written.write({"id": "x" * 1000})
    written.close()
    sizes = [file.stat().st_size for file in (path, path.with_suffix(OLDER))]
    assert max(sizes) <= 1000
    numbers = [note["id"] for note in read(path)]
    assert numbers == list(range(numbers[0], 500))
    assert len(numbers) * 12 > 1000


def test_writing_goes_on_after_it_was_closed(path: Path) -> None:
    """In the same file, whose bound holds for what was in there before, too."""
    written = Notes(path)
    written.write({"id": 1})
    written.close()
    written.write({"id": 2})
    written.close()
    assert [note["id"] for note in read(path)] == [1, 2]


@pytest.mark.parametrize("line", [b'{"id": 1', b"\xff\x00", b"[1]", b"[" * 100_000, b"", b"NaN"])
def test_garbage_is_passed_over(path: Path, line: bytes) -> None:
    """What is no note costs only itself."""
    path.write_bytes(b'{"id": "a"}\n' + line + b'\n{"id": "b"}\n')
    assert [note["id"] for note in read(path)] == ["a", "b"]


def test_a_huge_file_is_not_read_whole(path: Path) -> None:
    """Its last bytes are, as many as one of ours may have."""
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"id": "end"}\n')
    began = time.perf_counter()
    assert read(path) == [{"id": "end"}]
    assert time.perf_counter() - began < 10


def test_links_and_pipes_are_left_alone(path: Path, tmp_path: Path) -> None:
    """They may lead anywhere, or for ever."""
    secret = tmp_path / "secret"
    secret.write_text('{"id": 1}\n')
    path.symlink_to(secret)
    os.mkfifo(path.with_suffix(OLDER))
    assert read(path) == []
