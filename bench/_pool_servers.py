"""The servers behind the pools that need one, each up as long as somebody uses it.

PostgreSQL comes with the Python packages. Redis and MariaDB are programs of the system, started as
the tests start theirs; MongoDB is the tests' double. No pair that is timed asks a server for
anything but what the pool itself does.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from _database import database
from _net import free_port

_ROOT = Path(__file__).parent.parent

if str(_ROOT) not in sys.path:  # where the tests are found, whatever directory we are started in
    sys.path.append(str(_ROOT))


class UnavailableError(Exception):
    """A server cannot be started here; the text says why."""


@contextmanager
def _redis() -> Iterator[str]:
    """The URL of a Redis."""
    from tests import servers  # needs pytest, which a benchmark of other pools does not

    _program("redis-server", servers)
    with servers.redis() as url:
        yield url


@contextmanager
def _mariadb() -> Iterator[Any]:
    """The `tests.servers.Address` of a MariaDB."""
    from tests import servers

    _program("mariadbd", servers)
    with servers.mariadb() as address:
        yield address


@contextmanager
def _mongo() -> Iterator[str]:
    """The URL of what pymongo takes for a MongoDB; it may be up a moment later."""
    port = free_port()
    command = [sys.executable, "-m", "tests.sources.pools.mongo_double", str(port)]
    with subprocess.Popen(command, cwd=_ROOT) as double:
        try:
            yield f"mongodb://127.0.0.1:{port}/"
        finally:
            double.terminate()


SERVERS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "postgres": database,
    "redis": _redis,
    "mariadb": _mariadb,
    "mongo": _mongo,
}
"""Each hands out where it is. To be started before there is an event loop."""


def _program(name: str, servers: Any) -> None:
    try:
        servers.program(name)
    except BaseException as skipped:  # which is how pytest skips
        raise UnavailableError(str(skipped)) from None
