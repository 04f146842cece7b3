"""Whether a page is really that of the process whose number it bears."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopscope.core.claim import Claim, judged

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux tells who has a lock")
NOBODY = 65534


@pytest.fixture
def page(tmp_path: Path) -> Iterator[int]:
    """A file that this process has open, twice, and locked by one of the two."""
    path = tmp_path / "page"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    locked = os.open(path, os.O_RDWR)
    fcntl.flock(locked, fcntl.LOCK_EX)
    yield file
    os.close(file)
    os.close(locked)


def test_who_has_locked_it_claims_it_rightly(page: int) -> None:
    """By whichever of its files it did."""
    assert judged(os.getpid(), page) is Claim.TRUE


def test_nobody_elses_number_is_believed(page: int) -> None:
    """Least of all the first process', which root may look into; nor what is no number of any."""
    for pid in (1, 0, -1, 2**22 + 1, 2**31, 2**64 - 1):
        assert judged(pid, page) is Claim.FALSE


def test_to_have_it_open_is_not_to_have_locked_it(tmp_path: Path) -> None:
    """Who is started with it open, be it a program that changes its user, has another's lock."""
    command = [sys.executable, "-c", "input()"]
    with (tmp_path / "page").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert judged(os.getpid(), file.fileno()) is Claim.TRUE
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[file.fileno()]) as heir:
            assert judged(heir.pid, file.fileno()) is Claim.FALSE


def test_a_lock_that_is_gone_is_no_claim(tmp_path: Path) -> None:
    """The file is still open, and only that."""
    with (tmp_path / "page").open("w") as file:
        assert judged(os.getpid(), file.fileno()) is Claim.FALSE
        fcntl.flock(file, fcntl.LOCK_SH)
        assert judged(os.getpid(), file.fileno()) is Claim.FALSE


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize(("owner", "claim"), [(0, Claim.HIDDEN), (12345, Claim.FALSE)])
def test_where_the_kernel_does_not_say_the_user_has_to_fit(
    page: int, monkeypatch: pytest.MonkeyPatch, owner: int, claim: Claim
) -> None:
    """As of a process that has changed its user: it cannot be read, nor looked into."""

    def refuse(path: object) -> Iterator[os.DirEntry[str]]:
        raise PermissionError

    os.fchown(page, owner, owner)
    monkeypatch.setattr("loopscope.core.claim.os.scandir", refuse)
    assert judged(os.getpid(), page) is claim
