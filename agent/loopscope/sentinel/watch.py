"""The watch: from outside, for loops of all workers, many times a second.

A loop whose beat is late is looked at through py-spy: as long as it does not beat, what is seen is
what holds it. A look during which it did beat is thrown away, for nobody knows which came first.
Looks cost the machine a process each, so there are no more than so many a minute; what goes on
without one is recorded all the same.

A watch that was itself kept from running learns nothing from others' lateness, and looks again
first. A process that was stopped, or is being debugged, does not hang.
"""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any

from loopscope.core.budget import OVERFLOW
from loopscope.core.claim import Claim
from loopscope.core.clock import Clock
from loopscope.core.group import Group
from loopscope.core.stacks import UserCode
from loopscope.core.stall import Stall, as_json
from loopscope.exporters.log import sentence
from loopscope.sentinel.hang import Hang
from loopscope.sentinel.heartbeats import Heart, Heartbeats
from loopscope.sentinel.pyspy import GoneError, NotAllowedError, PySpyError, SeenThread, dump
from loopscope.sentinel.view import viewed
from loopscope.sources.evidence import is_stopped, schedule

logger = logging.getLogger("loopscope")

TICK = 0.02
"""Seconds between two rounds."""
_CLOSE = 0.01
"""Seconds by which a beat is late that is looked out for."""
_CLOSE_TICK = 0.005
"""Seconds between two rounds until it comes, or has been looked for."""
_LATE = 0.03
"""Seconds by which a round may be late itself, and still be believed."""
LISTING = 0.25
"""Seconds between two looks for workers that come and go."""
_LOOKS_A_MINUTE = 60
_MORE_LOOKS = 20
"""On top of that, for hangs alone: many short stalls must not hide one that is none."""
_MOST_FAILURES = 3
"""Looks in a row that came to nothing, each of which may have taken seconds of the watch's time,
after which there is one a minute."""
_NATIVE_AFTER = 3.0
"""Seconds after which a hang is worth stopping the process for, to see C code as well."""
_SAID_AFTER = 1.0
"""Seconds after which it is said in the log: shorter ones the worker tells of itself."""
_KEPT = 200

_MOST_PLACES = 200

Dump = Callable[..., list[SeenThread]]
Place = tuple[str, str, str]
"""Of a stall: route, location without its line, and cause."""


class Watch:
    """Watches the workers of ``group``. One thread, but for what says otherwise.

    ``note`` gets each record, again as it changes; ``on_workers`` those that are alive by their
    process ids, a few times a second. Stalls below ``threshold`` seconds are none.
    """

    def __init__(
        self,
        group: Group,
        clock: Clock,
        users: UserCode,
        *,
        threshold: float,
        note: Callable[[dict[str, Any]], None],
        on_workers: Callable[[list[int]], None] = lambda _: None,
        look: Dump = dump,
    ) -> None:
        self.looks: Counter[str] = Counter()
        """Looks by what came of them: seen, late, refused, failed, limited."""
        self.cut_short: dict[Place, tuple[int, float]] = {}
        """Stalls that their workers did not survive: how many, and their seconds."""
        self.hangs: dict[tuple[Heart, str], Hang] = {}
        self._heartbeats = Heartbeats(group)
        self._clock = clock
        self._users = users
        self._threshold = threshold
        self._note = note
        self._on_workers = on_workers
        self._dump = look
        self._over: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self._ids = count(1)
        self._recent: deque[float] = deque()
        self._failures = 0
        self._listed = float("-inf")
        self._awaited = float("inf")
        """When the round should begin that comes next."""

    def round(self) -> float:
        """Look at all loops once; the seconds until that should be done again."""
        now = self._clock.now()
        is_late = now - self._awaited > _LATE
        if now - self._listed >= LISTING:
            self.look_around()
        self._end_those_that_beat()
        if not is_late:
            for heart, loop, due in list(self._heartbeats.overdue(now, _CLOSE)):
                self._attend(heart, loop, due)
        is_close = any(not hang.tried for hang in self.hangs.values())
        pause = _CLOSE_TICK if is_close else TICK
        self._awaited = self._clock.now() + pause
        return pause

    def look_around(self) -> None:
        """See who has come and who is gone."""
        self._listed = self._clock.now()
        for heart in self._heartbeats.look_around(self._listed):
            self._lost(heart)
        self._on_workers(self.pids)

    @property
    def has_workers(self) -> bool:
        """Whether anybody was alive at the latest look."""
        return bool(self._heartbeats.hearts)

    @property
    def pids(self) -> list[int]:
        """The workers that were alive at the latest look; no process that a page only names."""
        hearts = list(self._heartbeats.hearts.values())
        return sorted({heart.pid for heart in hearts if heart.claim is not Claim.FALSE})

    def stalls(self) -> list[dict[str, Any]]:
        """What has been seen, as ``/api/stalls`` shows it. From any thread."""
        now = self._clock.now()
        going_on = [self._record(hang, now) for hang in list(self.hangs.values())]
        worth = [as_json(stall) for stall in going_on if stall.duration_s >= self._threshold]
        return [*worth, *list(self._over)]

    def held(self) -> dict[str, float]:
        """By worker: for how many seconds its loop has not come round. From any thread."""
        now = self._clock.now()
        held: dict[str, float] = {}
        for hang in list(self.hangs.values()):
            if now - hang.due >= self._threshold:
                worker = str(hang.heart.pid)
                held[worker] = max(held.get(worker, 0.0), now - hang.due)
        return held

    def close(self) -> None:
        """Let go of all files."""
        self._heartbeats.close()

    def _attend(self, heart: Heart, loop: str, due: float) -> None:
        """See to a loop whose beat is late."""
        hang = self.hangs.get((heart, loop))
        if (hang is None or not hang.views) and is_stopped(heart.pid):
            self.hangs.pop((heart, loop), None)
            return
        if hang is None:
            hang = self.hangs[heart, loop] = self._noticed(heart, loop, due)
        now = self._clock.now()
        has_news = hang.is_time_to_look(now)
        if has_news:
            self._look(hang)
        if has_news or not hang.has_been_noted:
            self._tell(hang)

    def _noticed(self, heart: Heart, loop: str, due: float) -> Hang:
        thread = heart.thread(loop)
        number = f"{heart.pid}-seen-{next(self._ids)}"
        now = self._clock.now()
        return Hang(heart, loop, thread, due, number, now, schedule(heart.pid, thread))

    def _look(self, hang: Hang) -> None:
        hang.tried += 1
        lasts = self._clock.now() - hang.due >= _SAID_AFTER
        most = _LOOKS_A_MINUTE + (_MORE_LOOKS if lasts else 0)
        self.looks[self._seen(hang) if self._may_look(most) else "limited"] += 1

    def _seen(self, hang: Hang) -> str:
        """Look once; what came of it."""
        heart = hang.heart
        try:
            _see_whose_it_is(heart)
            threads = self._dump(heart.pid)
        except NotAllowedError as error:
            if not hang.refused:
                hang.refused = str(error)
            return "refused"
        except GoneError:
            return "late"
        except PySpyError as error:
            logger.debug("loopscope: %s", error)
            self._failures += 1
            return "failed"
        self._failures = 0
        try:
            if hang.beats():
                return "late"
        except OSError:
            return "late"

        now = self._clock.now()
        books = hang.books(schedule(heart.pid, hang.thread), now)
        view = viewed(threads, hang.thread, books, self._users, heart.route_of, self._threshold)
        hang.add(view)
        if now - hang.due >= _NATIVE_AFTER and not hang.native:
            self._look_deeper(hang)
        return "seen"

    def _look_deeper(self, hang: Hang) -> None:
        """See C code as well, for which the process has to stand still."""
        try:
            hang.native = _innermost(self._dump(hang.heart.pid, native=True), hang.thread)
        except PySpyError as error:
            logger.debug("loopscope: %s", error)

    def _may_look(self, most: int) -> bool:
        """Whether there were fewer than ``most`` in the last minute; then this one counts."""
        now = self._clock.now()
        while self._recent and now - self._recent[0] > 60.0:
            self._recent.popleft()
        if len(self._recent) >= (1 if self._failures >= _MOST_FAILURES else most):
            return False
        self._recent.append(now)
        return True

    def _tell(self, hang: Hang) -> None:
        """Note how it stands, and say so once if it has lasted."""
        now = self._clock.now()
        if now - hang.due < self._threshold:
            return
        stall = self._record(hang, now)
        hang.has_been_noted = True
        self._note(as_json(stall))
        if now - hang.due >= _SAID_AFTER and not hang.has_been_said:
            hang.has_been_said = True
            why = f"; cannot look into it: {hang.refused}" if hang.refused else ""
            text = "loopscope: worker %d hangs: %s%s"
            logger.warning(text, hang.heart.pid, sentence(stall), why)

    def _end_those_that_beat(self) -> None:
        for key, hang in list(self.hangs.items()):
            with suppress(OSError):
                if hang.beats():
                    del self.hangs[key]
                    self._keep(hang)

    def _keep(self, hang: Hang, *, was_cut_short: bool = False) -> None:
        """The record of a hang that is over, one way or the other."""
        now = self._clock.now()
        if now - hang.due < self._threshold:
            return
        stall = hang.record(self._clock, now, in_progress=False)
        shown = {**as_json(stall), "cut_short": was_cut_short}
        if was_cut_short:
            self._count(stall)
        self._over.append(shown)
        self._note(shown)

    def _count(self, stall: Stall) -> None:
        place: Place = (stall.route, stall.label, stall.cause)
        if place not in self.cut_short and len(self.cut_short) >= _MOST_PLACES:
            place = (OVERFLOW, OVERFLOW, OVERFLOW)
        count, seconds = self.cut_short.get(place, (0, 0.0))
        self.cut_short[place] = count + 1, seconds + stall.duration_s

    def _lost(self, heart: Heart) -> None:
        """A worker has ended; if it hung, these are its last words."""
        for key, hang in list(self.hangs.items()):
            if hang.heart is heart:
                del self.hangs[key]
                self._keep(hang, was_cut_short=True)

    def _record(self, hang: Hang, now: float) -> Stall:
        return hang.record(self._clock, now, in_progress=True)


def _see_whose_it_is(heart: Heart) -> None:
    """Raises ``NotAllowedError`` where the process is not the page's own."""
    if heart.identify() is Claim.FALSE:
        raise NotAllowedError(
            f"process {heart.pid} is not looked into, as it has not locked the page that bears its "
            "number; workers in several containers need one process namespace (Kubernetes: "
            "shareProcessNamespace: true) to be seen"
        )


def _innermost(threads: list[SeenThread], native_id: int) -> str:
    """The function of C that the thread, or the one that has the interpreter, is in."""
    found = [each for each in threads if each.owns_gil or each.native_id == native_id]
    found.sort(key=lambda each: each.owns_gil, reverse=True)
    return next((each.frames[-1].function for each in found if each.frames), "")
