"""Real servers for the pools to connect to, each started once and gone with the tests."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from demo_app.postgres import READY
from tests import servers
from tests.conftest import LOOPS


@pytest.fixture(params=LOOPS[-2:])
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """uvloop, and asyncio's own: with eager tasks where there are any, plain on Python 3.11."""
    return request.param


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of a real PostgreSQL: a URL that names its unix socket."""
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


@pytest.fixture(scope="session")
def postgres_parts(postgres: str) -> servers.Address:
    """The same PostgreSQL, for pools made from parts; its host is the socket's directory."""
    url = urlsplit(postgres)
    (directory,) = parse_qs(url.query)["host"]
    return servers.Address(directory, 5432, url.username or "", "", url.path.removeprefix("/"))


@pytest.fixture(scope="session")
def mariadb() -> Iterator[servers.Address]:
    """Where a real MariaDB is."""
    with servers.mariadb() as address:
        yield address


@pytest.fixture(scope="session")
def redis() -> Iterator[str]:
    """The URL of a real Redis."""
    with servers.redis() as url:
        yield url


@pytest.fixture(scope="session")
def mongo() -> Iterator[str]:
    """The URL of what drivers take for a MongoDB, see ``mongo_double``."""
    port = servers.free_port()
    command = [sys.executable, "-m", "tests.sources.pools.mongo_double", str(port)]
    with (
        servers.temporary_directory() as directory,
        servers.running(command, port, directory),
    ):
        yield f"mongodb://{servers.HOST}:{port}/"
