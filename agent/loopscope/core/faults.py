"""What happens when loopscope itself fails: counted, logged once, and the service never notices.

Every place where our code runs on somebody else's path hands its exceptions to ``Faults.report``.
A part that keeps failing is switched off: ``report`` says when. In our own tests the same fault is
loud: ``Faults.loud`` makes ``report`` raise what it was given.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import ClassVar

logger = logging.getLogger("loopscope")


class Faults:
    """Counts failures by part, logs the first of each kind, decides when a part goes off."""

    loud: ClassVar[bool] = False
    """Raise instead of swallowing; set by the test suite, never in a service."""

    TOLERANCE: ClassVar[int] = 100
    """How many failures a part may have before it is switched off."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._logged: set[tuple[str, type[BaseException]]] = set()

    @property
    def counts(self) -> dict[str, int]:
        """Failures so far, by part."""
        return dict(self._counts)

    def is_off(self, part: str) -> bool:
        """Whether ``part`` has failed too often to go on."""
        return self._counts[part] >= self.TOLERANCE

    def report(self, part: str, error: BaseException) -> None:
        """Count ``error`` against ``part`` and log it the first time its type is seen there.

        Takes no lock, so two threads failing in the same instant may be counted as one.
        """
        if Faults.loud:
            raise error
        self._counts[part] += 1
        seen = (part, type(error))
        if seen not in self._logged:
            self._logged.add(seen)
            logger.warning(
                "loopscope: %s failed and was skipped (further failures of this kind are only "
                "counted, in loopscope_agent_errors_total)",
                part,
                exc_info=error,
            )
        if self._counts[part] == self.TOLERANCE:
            logger.error("loopscope: %s failed %d times and is now off", part, self.TOLERANCE)
