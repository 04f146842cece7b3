"""The demo's processes: heard while they start, quoted when they fail, gone afterwards."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from demo_app.child import ChildFailedError, running

# Standard library modules serve as children: one that speaks and ends, one that fails, and one
# that stays until its standard input ends.
SPEAKS = "this"
FAILS = ("http.server", "no-port")
STAYS = "code"


def test_a_child_that_ends_while_starting_is_quoted() -> None:
    """The error has the last thing the process said, so that nobody has to look for it."""

    async def start() -> None:
        async with running("the parser", *FAILS) as child:
            await child.hear("ready ", within_s=20)

    with pytest.raises(ChildFailedError, match=r"the parser: ended while starting[\s\S]*no-port"):
        asyncio.run(start())


def test_what_a_child_announces_is_heard() -> None:
    """The rest of the first line with the prefix is returned, whatever came before it."""

    async def start() -> str:
        async with running("zen", SPEAKS) as child:
            return await child.hear("Readability ", within_s=20)

    assert asyncio.run(start()) == "counts."


def test_a_child_that_never_gets_ready_is_not_waited_for_for_ever() -> None:
    """After the time given the child has failed, and it is gone at the end of its block."""

    async def start() -> bool:
        async with running("the prompt", STAYS) as child:
            with pytest.raises(ChildFailedError, match="the prompt: not ready within 1 s"):
                await child.hear("ready ", within_s=1)
        return child.ended

    assert asyncio.run(start())


def test_closing_its_input_ends_a_child() -> None:
    """A process that watches its standard input needs no signal to go."""
    code = "from demo_app import parent; parent.wait_until_gone(); print('gone')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="",
        text=True,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "gone\n")


def test_the_database_leaves_nothing_behind_when_its_parent_is_killed() -> None:
    """Neither a process nor a directory of PostgreSQL outlives a parent that could not clean up."""
    with subprocess.Popen(
        [sys.executable, "-m", "demo_app.postgres"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        data = Path(keeper.stdout.readline().strip().partition("host=")[2])
        server = psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))
        assert server.name() == "postgres"
        keeper.stdin.close()  # what the system does for a parent that has been killed
        assert keeper.wait(timeout=30) == 0
    assert not data.parent.exists()
    assert has_ended(server)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is gone, or only waits for the system to take note of it."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
