"""A witness in the service: which requests came in, and which were recorded.

It stands around everything else, and writes the number of a request into a file of its worker's
before the application is called and after it has returned, which is after Loopscope has recorded
it. A write that has been made outlives the worker.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from _exact_kinds import NUMBER

_WORD = struct.Struct("=Q")


class Witness:
    """Writes down every request that has a number, coming and going; `seen` reads it."""

    def __init__(self, app: ASGIApp, folder: Path) -> None:
        self._app = app
        self._folder = folder
        self._file: int | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = dict(scope.get("headers", ())).get(NUMBER)
        if number is None:
            await self._app(scope, receive, send)
            return
        self._write(2 * int(number))
        try:
            await self._app(scope, receive, send)
        finally:
            self._write(2 * int(number) + 1)

    def _write(self, word: int) -> None:
        if self._file is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._file = os.open(self._folder / f"{os.getpid()}.seen", flags, 0o600)
        os.write(self._file, _WORD.pack(word))


def seen(folder: Path) -> tuple[set[int], set[int]]:
    """The numbers of requests that came in, and of those that were done, from all workers."""
    words = [
        word for path in folder.glob("*.seen") for (word,) in _WORD.iter_unpack(path.read_bytes())
    ]
    coming, going = ({word // 2 for word in words if word % 2 == which} for which in (0, 1))
    return coming, going
