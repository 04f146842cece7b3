"""A worker's part in there being a sentinel."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.core.guard import Guard, guardian
from loopscope.sentinel import keeper
from loopscope.sentinel.keeper import Keeper, environment
from loopscope.settings import resolve
from tests.e2e.running import eventually, free_port
from tests.harness import call
from tests.test_sharing import hello

pytestmark = pytest.mark.real_time


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory of workers, none of whom is alive: a sentinel does not stay there for long."""
    yield tmp_path
    assert eventually(lambda: guardian(tmp_path) is None)


@pytest.fixture
def keepers(home: Path) -> Iterator[list[Keeper]]:
    """Of two workers."""
    keepers = [Keeper(home, resolve({"listen": "off"}, {})) for _ in range(2)]
    yield keepers
    for each in keepers:
        each.close()


def test_one_is_started_where_there_is_none(home: Path, keepers: list[Keeper]) -> None:
    """By whichever worker looks first, and only one."""
    for each in keepers:
        each.look()
    assert guardian(home) is not None
    assert eventually(lambda: bool(guardian(home)))
    first = guardian(home)
    for each in keepers:
        each.look()
    assert guardian(home) in (first, None)


def test_who_watches_may_look_into_us(
    home: Path, keepers: list[Keeper], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as it has said who it is, and its successor after it."""
    admitted: list[int] = []
    monkeypatch.setattr(keeper, "allow_others_to_trace", admitted.append)
    kept, _ = keepers
    guard = Guard.take(home)
    assert guard is not None
    kept.look()
    assert admitted == []
    guard.sign()
    kept.look()
    kept.look()
    assert admitted == [os.getpid()]
    guard.close()
    kept.look()
    assert eventually(lambda: bool(guardian(home)))
    kept.look()
    assert len(admitted) == 2


def test_one_that_was_killed_is_replaced(home: Path, keepers: list[Keeper]) -> None:
    """However often."""
    kept, _ = keepers
    for _ in range(5):
        kept.look()
        assert eventually(lambda: bool(guardian(home)))
        kept.look()
        who = guardian(home)
        if who:
            os.kill(who, signal.SIGKILL)
        assert eventually(lambda: guardian(home) is None)
    assert not kept.is_hopeless


@pytest.mark.parametrize("program", ["/bin/false", "/nowhere/python"])
def test_there_is_an_end_to_trying(
    home: Path,
    keepers: list[Keeper],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    program: str,
) -> None:
    """One that ends at once, or cannot be started, is tried a few times, and complained of once."""
    monkeypatch.setattr(sys, "executable", program)
    kept, _ = keepers
    for _ in range(6):
        kept.look()
        assert eventually(lambda: guardian(home) is None)
    assert kept.is_hopeless
    assert caplog.text.count("there is no sentinel") == 1


def test_workers_serve_themselves_where_there_will_be_none(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody who asked for a sentinel has less than who did not."""
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("loopscope.admin.listener._RETRY", 0.05)
    port = free_port()

    async def serve() -> None:
        app = Loopscope(hello, directory=str(home), listen=f"127.0.0.1:{port}", sentinel=True)
        await call(app)
        until = asyncio.get_running_loop().time() + 30
        while asyncio.get_running_loop().time() < until:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
        raise AssertionError

    asyncio.run(serve())
    assert current_agent() is not None


def test_a_sentinel_has_those_settings_that_are_its_own() -> None:
    """From wherever the worker had them; the rest of the environment is as it was."""
    settings = resolve(
        {"listen": "127.0.0.1:1", "token": "secret", "code_roots": ["/a", "/b"]},
        {"LOOPSCOPE_EXCLUDE": "a{1,2}"},
    )
    environ = {"PATH": "/bin", "LOOPSCOPE_EXCLUDE": "a{1,2}", "LOOPSCOPE_LISTEN": "off"}
    found = environment(settings, Path("/home"), environ)
    assert found.pop("PATH") == "/bin"
    theirs = resolve({}, found)
    assert theirs.directory == Path("/home")
    assert (theirs.listen, theirs.token) == ("127.0.0.1:1", "secret")
    assert theirs.code_roots == ("/a", "/b")
    assert theirs.exclude == ()
    assert not theirs.sentinel
