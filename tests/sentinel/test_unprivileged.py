"""A service that is nobody's, and its sentinel: what is seen without being root."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.running import ROOT, eventually, has_ended
from tests.sentinel.targets import NOBODY, public_python

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only root may look"),
    pytest.mark.real_time,
]


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the user nobody's."""
    folder = Path(tempfile.mkdtemp(prefix="loopscope-nobodys-"))
    os.chown(folder, NOBODY, NOBODY)
    yield folder
    shutil.rmtree(folder)


def environment() -> dict[str, str]:
    """What a Python of the system's needs to find what ours has, py-spy included."""
    packages = [f"{ROOT}/agent", str(ROOT), sysconfig.get_path("purelib")]
    found = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found is not None
    return {
        "PYTHONPATH": os.pathsep.join(packages),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PATH": os.pathsep.join((str(Path(found).parent), "/usr/bin", "/bin")),
        "SENTINEL": "on",
    }


@pytest.fixture
def worker(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker of that user's, which does what it is told to."""
    process = subprocess.Popen(
        [public_python(), "-m", "tests.sentinel.worker", str(home), "asyncio"],
        env=environment(), cwd=ROOT, user=NOBODY, group=NOBODY, extra_groups=[], text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=1,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != "ready\n":
                process.kill()
                pytest.skip(f"nobody cannot run a worker here: {process.communicate()[1][-300:]}")
            yield process
        finally:
            process.kill()


def sentinel_of(home: Path) -> int:
    """Who watches; 0 if nobody does."""
    with suppress(OSError, ValueError):
        return int((home / "sentinel").read_text())
    return 0


def seen(home: Path) -> dict[str, Any]:
    """The latest that the sentinel has noted."""
    noted = "".join(path.read_text() for path in home.glob("sentinel-*.notes"))
    lines = noted.splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def test_a_hang_is_seen_with_its_line_without_root(
    home: Path, worker: subprocess.Popen[str]
) -> None:
    """All that it takes is to be the same user; and the sentinel goes when its worker has gone."""
    assert eventually(lambda: bool(sentinel_of(home)))
    sentinel = psutil.Process(sentinel_of(home))
    assert set(sentinel.uids()) == {NOBODY}
    assert worker.stdin is not None
    worker.stdin.write("/hang\n")
    assert eventually(lambda: bool(seen(home).get("location") or seen(home).get("evidence")))
    stall = seen(home)
    if "ptrace_scope" in stall["evidence"].get("refused", ""):
        pytest.skip(stall["evidence"]["refused"])
    assert eventually(lambda: "hang" in seen(home)["location"])
    assert (seen(home)["route"], seen(home)["cause"]) == ("/hang", "cpu")
    worker.kill()
    assert eventually(lambda: has_ended(sentinel))
