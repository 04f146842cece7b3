"""One of four workers computes for ever: who says so, how soon, and what is left of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from _frozen_server import Server, asked_in_background, await_that
from _frozen_service import never_ending
from _stall_kinds import blocking_lines
from _table import table

WORKERS = 4
_REQUESTS = 100
_UNASKED = 0.15
"""Seconds in which nobody asks: a question on its way to a worker as it freezes takes a second."""
_SETTLING = 3.0
"""Seconds after the start in which the workers have written down what their routes lead to."""
_PROGRESS = "asyncio_eventloop_stall_in_progress_seconds"
_OUTCOMES = "loopscope_request_outcomes_total"
_ENDS = "loopscope_worker_ends_total"
_STALLS = "asyncio_eventloop_stalls_total"
(_LINE,) = blocking_lines(never_ending)


def hang(loop: str) -> dict[str, Any]:
    """What happened on such a `loop`: seconds until somebody said so, and what was true."""
    with Server.running(loop, WORKERS) as server:
        time.sleep(_SETTLING)
        victim = server.worker_pids()[0]
        with server.to(victim) as ask, asked_in_background(ask, "/hang"):
            began = time.monotonic()
            time.sleep(_UNASKED)
            after = _all_of(server, victim, began)
            counted = _others_count(server)
            os.kill(victim, signal.SIGKILL)
        left = await_that(lambda: _has_last_words(server, victim), "it leaves last words", server)
        await_that(lambda: server.figure(_ENDS, 'how="killed"') == 1, "its end is counted", server)
        return {
            "loop": loop,
            **after,
            "others": counted,
            "last_words": left,
            "stalls_counted": server.figure(_STALLS, 'http_route="/hang"'),
        }


def _all_of(server: Server, victim: int, began: float) -> dict[str, float]:
    """Seconds until each of those that are to say so has."""
    says: dict[str, Callable[[], bool]] = {
        "stalls": lambda: bool(_record(server, victim)),
        "metric": lambda: server.figure(_PROGRESS, f'worker="{victim}"') > 0,
        "log": lambda: any(
            f"worker {victim} hangs" in line and _LINE in line
            for line in server.log.read_text().splitlines()
        ),
    }
    after: dict[str, float] = {}

    def have_all_said_it() -> bool:
        for name in says.keys() - after.keys():
            if says[name]():
                after[name] = time.monotonic() - began
        return after.keys() == says.keys()

    await_that(have_all_said_it, f"everybody says that {victim} hangs", server)
    return after


def _record(server: Server, victim: int) -> dict[str, Any]:
    """The record that names worker, line and route."""
    stalls = server.said_by_admin("/api/stalls")["stalls"]
    for stall in stalls:
        names = (stall["worker"], stall["route"]) == (str(victim), "/hang")
        if names and _LINE in stall["location"]:
            return dict(stall)
    return {}


def _others_count(server: Server) -> bool:
    """Whether the others serve, and every request is counted."""
    before = server.figure(_OUTCOMES, 'http_route="/ready"')
    for _ in range(_REQUESTS):
        server.ask("/ready")
    return server.figure(_OUTCOMES, 'http_route="/ready"') - before == _REQUESTS


def _has_last_words(server: Server, victim: int) -> bool:
    return bool(_record(server, victim).get("cut_short"))


def report(found: list[dict[str, Any]]) -> None:
    """Print what `hang` has found."""
    table(
        f"A regular expression without end in one of {WORKERS} gunicorn workers: seconds until it"
        " is reported with line and route, and after kill -9",
        ["loop", "stalls", "metric", "log", "others count", "last words", "counted"],
        [
            (
                each["loop"],
                *(f"{each[name]:.2f}" for name in ("stalls", "metric", "log")),
                "all" if each["others"] else "NOT ALL",
                f"{each['last_words']:.2f}",
                f"{each['stalls_counted']:.0f}",
            )
            for each in found
        ],
    )
