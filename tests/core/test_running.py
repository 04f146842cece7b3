"""Which event loop runs here."""

from __future__ import annotations

import asyncio

import pytest

from loopscope.core.running import running_loop


@pytest.mark.anyio
async def test_the_running_loop_is_found() -> None:
    """Whatever kind of loop it is."""
    assert running_loop() is asyncio.get_running_loop()


def test_where_no_loop_runs_there_is_none() -> None:
    """It is a question, so no error."""
    assert running_loop() is None
