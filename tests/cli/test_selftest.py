"""``loopscope selftest``."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.real_time
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_selftest_sees_every_hold_and_accuses_no_innocent(loop: str) -> None:
    """Each way to hold a loop is seen, and what is named is what did it."""
    found = subprocess.run(
        [sys.executable, "-m", "loopscope", "selftest", "--loop", loop],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("  seen  ") == 7
    assert found.stdout.startswith(f"{loop}: ")
