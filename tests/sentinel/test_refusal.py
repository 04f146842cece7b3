"""Why the kernel refuses a look, and what is said about it."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loopscope.sentinel.refusal import Standing, judged, reason, standing
from tests.sentinel import targets

linux = pytest.mark.skipif(sys.platform != "linux", reason="about Linux' rules")

NO_REASON = Standing(
    pid=7, our_user=1000, is_capable=False, is_filtered=False, scope=0, their_user=1000,
    is_dumpable=True, exceeds_us=False,
)  # fmt: skip


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"scope": 3}, ("ptrace_scope is 3", "boots")),
        ({"scope": 3, "is_capable": True}, ("ptrace_scope is 3", "boots")),
        ({"scope": 2}, ("ptrace_scope is 2", "--cap-add SYS_PTRACE", "add: [SYS_PTRACE]")),
        ({"scope": 1}, ("ptrace_scope is 1", "kernel.yama.ptrace_scope=0", "SYS_PTRACE")),
        ({"scope": 1, "their_user": 0}, ("belongs to user 0", "this is user 1000")),
        ({"tracer": 99, "is_capable": True}, ("process 99 is attached to it already",)),
        ({"is_dumpable": False}, ("not dumpable", "PR_SET_DUMPABLE", "user 1000")),
        ({"exceeds_us": True}, ("has capabilities that this process lacks",)),
        ({"is_filtered": True}, ("seccomp", "process_vm_readv", "--cap-add SYS_PTRACE")),
        ({"is_filtered": True, "is_capable": True}, ("seccomp", "--security-opt")),
        ({"unreadable": "/root/python"}, ("/root/python cannot be read by user 1000",)),
        ({}, ("AppArmor or SELinux",)),
        ({"is_capable": True, "their_user": 0}, ("although this process has SYS_PTRACE",)),
    ],
)
def test_the_reason_is_named_with_what_to_do_about_it(
    found: dict[str, Any], words: tuple[str, ...]
) -> None:
    """Of several that hold, the one that would be in the way first."""
    said = judged(replace(NO_REASON, **found))
    assert said.startswith("the kernel refuses a look into process 7: ")
    assert [each for each in words if each not in said] == []
    assert "\n" not in said


def test_macos_lets_only_root_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """And there is nothing to read there that would say more."""
    monkeypatch.setattr(sys, "platform", "darwin")
    assert reason(7) == "macOS lets only root look into process 7; run this with sudo"


@linux
def test_what_holds_here_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may look into itself, so there is nothing against it."""
    found = standing(os.getpid())
    assert (found.our_user, found.their_user) == (os.geteuid(), os.geteuid())
    assert (found.is_dumpable, found.exceeds_us, found.unreadable) == (True, False, "")


@linux
def test_what_cannot_be_read_is_taken_to_be_harmless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No ``/proc`` is no reason for anything but a general sentence."""
    monkeypatch.setattr("loopscope.sentinel.refusal._PROC", tmp_path)
    monkeypatch.setattr("loopscope.sentinel.refusal._SCOPE", tmp_path / "scope")
    assert "AppArmor or SELinux" in reason(os.getpid())


@linux
def test_a_user_may_look_into_their_own_processes() -> None:
    """Root is not needed for that, nor any capability, where Yama does not ask for them."""
    with targets.running_as_nobody(targets.ASLEEP) as process:
        scope = Path("/proc/sys/kernel/yama/ptrace_scope")
        if scope.exists() and scope.read_text().strip() != "0":
            pytest.skip("Yama lets ancestors only")
        assert targets.seen_by_nobody(process.pid) == "functions <module>"


@linux
def test_one_that_is_not_dumpable_is_refused_with_the_reason() -> None:
    """Even to its own user: as it is with a server that gave root up after its start."""
    with targets.running_as_nobody(targets.NOT_DUMPABLE) as process:
        said = targets.seen_by_nobody(process.pid)
    assert said.startswith("NotAllowedError the kernel refuses a look into process ")
    assert "it is not dumpable" in said
    assert "--cap-add SYS_PTRACE" in said


@linux
def test_another_users_process_is_refused_with_the_reason(tmp_path: Path) -> None:
    """Whoever reads it knows whose it is, and what to grant."""
    with targets.running(targets.ASLEEP, tmp_path / "target.py") as process:
        said = targets.seen_by_nobody(process.pid)
    assert said.startswith("NotAllowedError the kernel refuses a look into process ")
    assert f"belongs to user {os.geteuid()} and this is user {targets.NOBODY}" in said
    assert "--cap-add SYS_PTRACE" in said
