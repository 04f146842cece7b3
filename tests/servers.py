"""Real servers on free loopback ports: everything they write goes with them.

Each is a context manager, for fixtures to wrap. A test that needs a program this machine lacks is
skipped.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

HOST = "127.0.0.1"
_PATIENCE_S = 30.0
_ADMINISTRATION = "/usr/local/sbin:/usr/sbin:/sbin"  # on root's path only

# The keeper outlives a test run that is killed, sees its standard input end, and clears up. It
# kills because nothing is worth keeping, and a MariaDB asked to end just after it has begun to
# listen may never do so.
_KEEPER = """
directory=$1
shift
"$@" >"$directory/log" 2>&1 &
read -r _
{ kill -9 $!; wait $!; } 2>/dev/null
rm -rf "$directory"
"""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a database is and who may enter. ``host`` may be a unix socket's directory."""

    host: str
    port: int
    user: str
    password: str
    database: str

    def url(self, scheme: str) -> str:
        """As a URL, for servers reached by TCP."""
        return f"{scheme}://{self.user}:{self.password}@{self.host}:{self.port}/{self.database}"


def free_port() -> int:
    with socket.create_server((HOST, 0)) as server:
        return int(server.getsockname()[1])


def program(name: str) -> str:
    """The path of a program; without it the test is skipped."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_ADMINISTRATION}")
    if found is None:
        pytest.skip(f"{name} is not installed (`make system` does, as root on Debian)")
    return found


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory for a server; whoever comes first, we or the server's keeper, removes it."""
    directory = Path(tempfile.mkdtemp(prefix="loopscope-server-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def running(command: Sequence[str | Path], port: int, directory: Path) -> Iterator[None]:
    """Run a server until the block ends or this process does; its output is ``directory/log``.

    The block is entered when something listens on ``port``.
    """
    with subprocess.Popen(
        ["sh", "-c", _KEEPER, "keeper", directory, *command],
        stdin=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests
        text=True,
    ) as keeper:
        try:
            assert _listens(port), f"{command[0]} did not start:\n{_said(directory)}"
            yield
        finally:
            keeper.communicate("stop\n", timeout=_PATIENCE_S)


@contextmanager
def mariadb() -> Iterator[Address]:
    """A MariaDB with one empty database, which lets everyone in.

    Without grant tables there is nothing to install first, which takes longer than starting does.
    """
    server, port = program("mariadbd"), free_port()
    with temporary_directory() as directory:
        data = directory / "data"
        Path(data, "test").mkdir(parents=True)  # what makes a database in MariaDB
        options = {
            "datadir": data,
            "bind-address": HOST,
            "port": port,
            "socket": directory / "socket",
            "pid-file": directory / "pid",
            "innodb-buffer-pool-size": "8M",
            "innodb-log-file-size": "4M",
            "innodb-flush-log-at-trx-commit": 0,
            "performance-schema": "off",
        }
        flags = ["--skip-grant-tables", "--skip-log-bin", "--skip-name-resolve"]
        if os.geteuid() == 0:
            flags.append("--user=root")  # which it refuses to be unasked
        given = [f"--{name}={value}" for name, value in options.items()]
        with running([server, "--no-defaults", *given, *flags], port, directory):
            yield Address(HOST, port, "root", "", "test")


@contextmanager
def redis() -> Iterator[str]:
    """The URL of a Redis that writes nothing to disk."""
    server, port = program("redis-server"), free_port()
    with temporary_directory() as directory:
        listen = ["--bind", HOST, "--port", str(port)]
        forget = ["--save", "", "--appendonly", "no", "--dir", str(directory)]
        with running([server, *listen, *forget], port, directory):
            yield f"redis://{HOST}:{port}/0"


def _listens(port: int) -> bool:
    """Whether a connection to ``port`` comes about while patience lasts."""
    until = time.monotonic() + _PATIENCE_S
    while time.monotonic() < until:
        try:
            socket.create_connection((HOST, port), timeout=1.0).close()
        except OSError:
            time.sleep(0.02)
        else:
            return True
    return False


def _said(directory: Path) -> str:
    return (directory / "log").read_text(errors="replace")
