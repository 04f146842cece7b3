"""A worker's part in there being a sentinel: start one where there is none, and let it look in.

Every worker of a group does this, for any of them may be the last; the lock in their directory says
whether there is one (``core.guard``). One that was killed is replaced as soon as that is noticed.
Where none can be started, or none stays, workers go on as if they had not been asked to have one.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from loopscope.core.guard import Guard, guardian
from loopscope.core.ptrace import allow_others_to_trace
from loopscope.settings import PREFIX, Settings

logger = logging.getLogger("loopscope")

_MOST_FAILURES = 3
"""Attempts in a row that came to nothing, after which there are no more."""
_SETTLING = 2.0
"""Seconds that one may take to become nobody's child, at most."""


class Keeper:
    """Keeps a sentinel over ``directory``. For one thread; ``look`` is to be called regularly."""

    def __init__(self, directory: Path, settings: Settings) -> None:
        self._directory = directory
        self._settings = settings
        self._started: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._admitted = 0
        self._why = "it ends as soon as it is started"
        self._has_complained = False

    @property
    def is_hopeless(self) -> bool:
        """Whether there will be none."""
        return self._failures >= _MOST_FAILURES

    def look(self) -> None:
        """See that there is a sentinel, and that it may look into this process."""
        if self._started is not None and self._started.poll() is not None:
            self._started = None
        try:
            who = guardian(self._directory)
            if who is None and not self.is_hopeless:
                self._start()
            elif who and who != self._admitted:
                self._failures = 0
                self._admitted = who
                allow_others_to_trace(who)
        except OSError as error:
            self._why = str(error)
        if self.is_hopeless and not self._has_complained:
            self._complain()

    def close(self) -> None:
        """Leave the sentinel to the others; it ends by itself if there are none."""
        started, self._started = self._started, None
        if started is not None:
            with suppress(subprocess.TimeoutExpired):
                started.wait(_SETTLING)

    def _start(self) -> None:
        """Start one, unless another worker is just at it. Raises ``OSError``."""
        self._failures += 1  # until one is seen to be there
        guard = Guard.take(self._directory)
        if guard is None:
            return
        try:
            self._started = subprocess.Popen(  # noqa: S603 - this very Python, and our own module
                [sys.executable, "-P", "-m", "loopscope.sentinel", str(guard.fileno())],
                env=environment(self._settings, self._directory, os.environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=(guard.fileno(),),
                start_new_session=True,
            )
        finally:
            guard.close()

    def _complain(self) -> None:
        self._has_complained = True
        logger.warning(
            "loopscope: there is no sentinel (%s): workers that hang are not seen from outside, "
            "and the workers serve their figures themselves",
            self._why,
        )


def environment(settings: Settings, directory: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` with those ``settings`` of the worker's that are the sentinel's, too."""
    rest = {name: text for name, text in environ.items() if not name.startswith(PREFIX)}
    return {
        **rest,
        f"{PREFIX}DIR": str(directory),
        f"{PREFIX}LISTEN": settings.listen,
        f"{PREFIX}TOKEN": settings.token,
        f"{PREFIX}STALL_THRESHOLD": str(settings.stall_threshold),
        f"{PREFIX}CODE_ROOTS": ",".join(settings.code_roots),
    }
