"""gunicorn's workers, on the one loop or the other: its command line has no name for that."""

from __future__ import annotations

from typing import ClassVar

from uvicorn_worker import UvicornWorker  # type: ignore[import-untyped]


class AsyncioWorker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS: ClassVar = {"loop": "asyncio", "http": "auto"}


class UvloopWorker(UvicornWorker):  # type: ignore[misc]
    CONFIG_KWARGS: ClassVar = {"loop": "uvloop", "http": "auto"}
