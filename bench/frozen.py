"""What the sentinel sees of services that freeze, how soon, whether it is true, and what it costs.

A real server under a sentinel is made to freeze, in ways of which the service knows the truth;
`/api/stalls` is asked all the while. README.md beside it says how to read the result.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from _frozen_cost import costs
from _frozen_cost import report as report_costs
from _frozen_hang import hang
from _frozen_hang import report as report_hangs
from _frozen_scores import Freeze, Tally
from _frozen_server import Server, asked_in_background, talk
from _stall_kinds import backtrack, blocking_lines, compute, hold_gil, sleep
from _stats import Spread, wilson
from _table import console, describe, machine, save, table

PACKAGES = ("loopscope", "uvloop", "uvicorn", "gunicorn", "py-spy")
PARTS = ("freezes", "hang", "cost")
_LINES: dict[str, Callable[..., object]] = {
    "re": backtrack,
    "usleep": hold_gil,
    "sleep": sleep,
    "python": compute,
}
_KINDS = {
    "re": ("loop", "re", False),
    "usleep": ("loop", "usleep", False),
    "sleep": ("loop", "sleep", False),
    "python": ("loop", "python", False),
    "thread-re": ("thread", "re", False),
    "thread-re-busy": ("thread", "re", True),
    "thread-usleep": ("thread", "usleep", False),
    "thread-usleep-busy": ("thread", "usleep", True),
}
"""Where what blocks, and whether the loop has requests meanwhile."""
_THIEF = "thief"
_LOOKS = "loopscope_sentinel_looks_total"
_LOOKS_A_MINUTE = 45
"""Of the 60 that the sentinel allows itself: so that its limit is not what is measured."""
_MOST_LOOKS = 5
"""That one freeze of ours can be worth."""
_COLUMNS = (
    "freeze", "disturbed", "seen", "wrong", "told wrong", "route", "one", "error", "shown", "named",
)  # fmt: skip
_LONG_MS = 150
"""From here on a line is promised."""
_POLL = 0.05
"""Seconds between two questions while something is frozen."""
_AFTERWARDS = 1.0
"""Seconds in which the worker may add what it knows itself."""
_REST = (0.4, 0.7)
"""Seconds between two freezes: the loop rests again, and beats at any phase."""


def main() -> int:
    """Measure, print, save."""
    options = _options()
    where = machine(PACKAGES)
    describe(where)
    result: dict[str, Any] = {"machine": where}
    if "freezes" in options.parts:
        freezes = [each for loop in options.loops for each in _freezes(loop, options)]
        _report(freezes)
        result["freezes"] = [asdict(each) for each in freezes]
    if "hang" in options.parts:
        result["hang"] = [hang(loop) for loop in options.loops]
        report_hangs(result["hang"])
    if "cost" in options.parts:
        found = costs(options.loops, options.seconds)
        report_costs(found)
        result["cost"] = [asdict(each) for each in found]
    if options.json:
        save(options.json, result)
    return 0


def _options() -> argparse.Namespace:
    def words(text: str) -> list[str]:
        return text.split(",")

    def numbers(text: str) -> list[int]:
        return [int(each) for each in words(text)]

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--parts", type=words, default=PARTS, help="of freezes,hang,cost")
    parser.add_argument("--loops", type=words, default=("asyncio", "uvloop"))
    parser.add_argument("--kinds", type=words, default=tuple(_KINDS), help=f"of {','.join(_KINDS)}")
    parser.add_argument("--durations", type=numbers, default=(100, 150, 300, 1000), help="in ms")
    parser.add_argument("--n", type=int, default=10, help="freezes of each kind and duration")
    parser.add_argument(
        "--workers", type=int, default=0, help="under gunicorn; 0, the default: uvicorn alone"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="over which CPU is counted")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


class Pace:
    """Keeps the looks of a sentinel below its own limit, by what it says of them itself."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._before = server.figure(_LOOKS)
        self._taken: deque[tuple[float, float]] = deque()

    def wait(self) -> None:
        """Until there is room for another freeze."""
        now = self._server.figure(_LOOKS)
        self._taken.append((time.monotonic(), now - self._before))
        self._before = now
        while self._in_a_minute() > _LOOKS_A_MINUTE - _MOST_LOOKS:
            time.sleep(0.5)

    def _in_a_minute(self) -> float:
        while self._taken and time.monotonic() - self._taken[0][0] > 60.0:
            self._taken.popleft()
        return sum(count for _, count in self._taken)


def _freezes(loop: str, options: argparse.Namespace) -> list[Freeze]:
    """All that were asked for, in an order drawn once, on one server."""
    plan = [(k, ms) for k in options.kinds for ms in options.durations for _ in range(options.n)]
    random.Random(loop).shuffle(plan)
    found: list[Freeze] = []
    with Server.running(loop, options.workers) as server:
        pids = server.worker_pids()
        sizes: dict[str, int] = {}
        for pid in pids:
            with server.to(pid) as ask:
                asked = ",".join(map(str, options.durations))
                sizes = ask(f"/prepare?ms={asked}", sizes)
        pace = Pace(server)
        for number, (kind, ms) in enumerate(plan):
            pace.wait()
            time.sleep(random.uniform(*_REST))
            pid = pids[number % len(pids)]
            is_busy = _KINDS[kind][2]
            with server.busy(pid) if is_busy else nullcontext():
                found.append(_freeze(server, pid, kind, loop, ms, number))
            if number % 20 == 0:
                console.print(f"{loop}: {number} of {len(plan)}, {os.getloadavg()[0]:.1f} load")
        looks = {
            outcome: server.figure(_LOOKS, f'outcome="{outcome}"')
            for outcome in ("seen", "late", "failed", "refused", "limited")
        }
        console.print(f"{loop}, looks: {looks}\n")
    return found


def _freeze(server: Server, pid: int, kind: str, loop: str, ms: int, number: int) -> Freeze:
    """Have a worker freeze, and ask about it until all is known."""
    where, what, _ = _KINDS[kind]
    answers: list[tuple[float, list[dict[str, Any]]]] = []
    path = f"/{where}/{what}/{ms}/{number}"
    with server.to(pid) as ask, talk(server.admin) as asked, asked_in_background(ask, path):
        until = time.time() + ms / 1000 + _AFTERWARDS
        while time.time() < until:
            stalls = asked("/api/stalls?sort=newest&limit=20")["stalls"]
            answers.append((time.time(), stalls))
            time.sleep(_POLL)
    with server.to(pid) as ask:
        truth: dict[str, Any] | None = None
        while truth is None:
            truth = ask(f"/truth/{number}")
    in_thread = where == "thread"
    freeze = Freeze(
        kind, loop, ms, truth["pid"], truth["start"], truth["end"],
        waited=truth["waited"],
        lines=blocking_lines(_LINES[what]),
        route="" if in_thread else "/loop/{what}/{ms}/{name}",
        thread=_THIEF if in_thread else "",
    )  # fmt: skip
    for moment, stalls in answers:
        freeze.see(stalls, moment)
    return freeze


def _report(freezes: Sequence[Freeze]) -> None:
    for loop in sorted({each.loop for each in freezes}):
        rows = []
        for kind in _KINDS:
            for ms in sorted({each.ms for each in freezes}):
                some = [f for f in freezes if (f.loop, f.kind, f.ms) == (loop, kind, ms)]
                if some:
                    rows.append((f"{kind}, {ms} ms", *_columns(Tally.of(some))))
        table(
            f"{loop}: of so many, those that waited for a CPU themselves; seen from outside with "
            "the right line; somebody else accused there, or by the rest of the record; the right "
            "route; one record of it; error of its length; until /api/stalls has it, and has the "
            "line (ms, median and worst)",
            _COLUMNS,
            rows,
        )
    _judge(freezes)


def _columns(tally: Tally) -> list[str]:
    counts = [tally.disturbed, tally.seen, tally.wrong, tally.told_wrong, tally.route, tally.one]
    times = [tally.errors, tally.shown_after, tally.named_after]
    return [f"{count}/{tally.count}" for count in counts] + [_middle(each) for each in times]


def _middle(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    return f"{Spread.of(seconds).median * 1e3:.0f}, {max(seconds, key=abs) * 1e3:.0f}"


def _judge(freezes: Sequence[Freeze]) -> None:
    long = [each for each in freezes if each.end - each.start >= _LONG_MS / 1000]
    disturbed = sum(each.is_disturbed for each in long)
    long = [each for each in long if not each.is_disturbed]
    for name, some in (
        ("threads that hold the GIL", [each for each in long if each.thread]),
        ("code on the loop", [each for each in long if not each.thread]),
    ):
        seen = sum(each.is_seen for each in some)
        low, high = wilson(seen, len(some))
        console.print(
            f"{name}, {_LONG_MS} ms or longer: {seen} of {len(some)} seen from outside with their"
            f" line ({low:.1%} to {high:.1%})"
        )
    console.print(f"not counted, as they waited for a CPU themselves: {disturbed}")
    tally = Tally.of(freezes)
    for who, wrong in (("from outside", tally.wrong), ("by the record itself", tally.told_wrong)):
        low, high = wilson(wrong, len(freezes))
        console.print(
            f"somebody else accused {who}: {wrong} of {len(freezes)} ({low:.1%} to {high:.1%})"
        )
    console.print()


if __name__ == "__main__":
    raise SystemExit(main())
