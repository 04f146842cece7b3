"""Real servers for the pools to connect to, each started once and gone with the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from demo_app.postgres import READY


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL."""
    with subprocess.Popen(
        [sys.executable, "-m", "demo_app.postgres"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        line = next((each for each in server.stdout if each.startswith(READY)), "")
        assert line, "PostgreSQL did not start"
        yield line.removeprefix(READY).strip()
        server.stdin.close()
        server.wait(30)
