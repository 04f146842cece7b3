"""The sentinel's process: one for the workers that share a directory, as long as there is any.

It belongs to none of them. It is nobody's child, so that no server counts it among its workers or
waits for it; it is in no terminal's foreground, so that Ctrl-C reaches the workers first; and it
has none of their files open, their listening socket least of all. It is started with a lock on the
directory, by which it is known to be there, and the only one; it signs that with its number.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from loopscope.core.group import remove_if_deserted
from loopscope.core.guard import Guard
from loopscope.sentinel.service import Sentinel
from loopscope.settings import resolve
from loopscope.sources.workers import has_server, is_left_for_good

logger = logging.getLogger("loopscope")

_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_PATIENCE = 0.5
"""Seconds without any worker after which there will be none: the one that started us was there."""
_PATIENCE_WITH_SERVER = 5.0
"""The same where their server is alive: it may be replacing them."""


def main(arguments: Sequence[str], environ: Mapping[str, str]) -> int:
    """Watch over the directory that ``LOOPSCOPE_DIR`` names until its workers have ended.

    The one of ``arguments`` is the number of the file that is its lock.
    """
    logging.basicConfig(format=_FORMAT, level=logging.WARNING)
    settings = resolve({}, environ)
    if settings.directory is None or not arguments:
        print("loopscope: the sentinel is started by workers, not by hand", file=sys.stderr)
        return 2
    guard = Guard(int(arguments[0]))
    guard.sign()
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sentinel = Sentinel(settings.directory, settings)
    try:
        sentinel.start()
        _watch(sentinel, settings.directory, stopping)
    finally:
        sentinel.stop()
        guard.close()
    _tidy_up(settings.directory)
    return 0


def _watch(sentinel: Sentinel, directory: Path, stopping: threading.Event) -> None:
    seen = time.monotonic()
    while not stopping.is_set():
        pause = sentinel.round()
        now = time.monotonic()
        if sentinel.watch.has_workers:
            seen = now
        elif now - seen > (_PATIENCE_WITH_SERVER if has_server(directory) else _PATIENCE):
            return
        stopping.wait(pause)


def _tidy_up(directory: Path) -> None:
    """Delete ``directory`` if that was the end of the whole service, not of its workers alone."""
    with suppress(OSError):  # a worker that starts after all, or another sentinel, has it
        if is_left_for_good(directory):
            remove_if_deserted(directory, after=0.0)
