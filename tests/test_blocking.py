"""The watch on ourselves: what it catches, and what is not ours to answer for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockingError

import loopscope
from loopscope import Loopscope
from loopscope.sources.requests import RequestRecorder
from tests.blocking import ALLOWED
from tests.harness import Message, call

PACKAGE = Path(loopscope.__file__).parent
BLOCKING = {
    "sleep": "import time\ndef blocks(*_): time.sleep(0.001)",
    "open": "def blocks(*_): open('/dev/null').close()",
    "lock": (
        "import threading\nheld = threading.Lock()\nheld.acquire()\n"
        "def blocks(*_): held.acquire(timeout=0.001)"
    ),
}


def of_ours(kind: str) -> Callable[..., None]:
    """A function that blocks, as if it stood in a file of loopscope's."""
    names: dict[str, Any] = {}
    exec(compile(BLOCKING[kind], str(PACKAGE / "sources" / "made_up.py"), "exec"), names)
    return names["blocks"]  # type: ignore[no-any-return]


async def app(scope: Message, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("kind", BLOCKING)
def test_code_of_ours_that_blocks_the_loop_fails_the_test(kind: str) -> None:
    """Sleeping, opening a file and waiting for a lock are caught wherever a loop is running."""

    async def on_the_loop() -> None:
        of_ours(kind)()

    with pytest.raises(BlockingError):
        asyncio.run(on_the_loop())


def test_recording_that_blocks_is_caught_in_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing open does not hide it: the fault is loud, like any of ours in a test."""
    monkeypatch.setattr(RequestRecorder, "cell", of_ours("sleep"))
    with pytest.raises(BlockingError):
        asyncio.run(call(Loopscope(app)))


def test_threads_of_ours_may_block() -> None:
    """Off the loop is where blocking belongs."""
    failed: list[BaseException] = []

    def off_the_loop() -> None:
        try:
            of_ours("sleep")()
        except BlockingError as error:
            failed.append(error)

    async def waits() -> None:
        thread = threading.Thread(target=off_the_loop)
        thread.start()
        while thread.is_alive():
            await asyncio.sleep(0)

    asyncio.run(waits())
    assert not failed


def test_what_the_application_blocks_is_its_own_affair() -> None:
    """An application below us may do as it likes, in its first step and in later ones."""

    async def blocks(scope: Message, receive: Any, send: Any) -> None:
        time.sleep(0.001)
        await asyncio.sleep(0)
        time.sleep(0.001)
        await app(scope, receive, send)

    assert asyncio.run(call(Loopscope(blocks))).status == 200


OURS = [key for key in ALLOWED if key[0].startswith(("loopscope/", "tests/"))]


@pytest.mark.parametrize(("file", "function"), OURS)
def test_no_exception_outlives_what_it_was_made_for(file: str, function: str) -> None:
    """Every function of ours that may block is still there."""
    folder = PACKAGE.parent if file.startswith("loopscope/") else Path(__file__).parents[1]
    assert f"def {function}(" in (folder / file).read_text()
