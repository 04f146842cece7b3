"""Whether the phases of requests are what they should be, for requests whose anatomy is known.

Each request computes, sleeps, waits for a pool of a few, has a thread of a few do something, and
waits for its client in both directions; it notes itself when each of these was over and when it was
its turn again. The sums of that are the truth, and running is what they leave over, beside what
loopscope says. One at a time and many at once, on each kind of event loop. Run it with `--help` for
the options.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import uvloop

from _table import Verdict, broken, describe, machine, save, table, verdicts
from loopscope import Loopscope
from loopscope.agent import current_agent, stop_agent
from loopscope.core.phases import NOWHERE, POOL_WAIT
from loopscope.sources.ledger import current
from loopscope.sources.requests import DURATION, PHASE

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}
ABSOLUTE, RELATIVE = 0.002, 0.05
"""What is near enough: seconds of a request, or a share of the truth."""

CPU, SLEEP, HELD, IN_THREAD, CLIENT = 0.001, 0.03, 0.004, 0.006, 0.02
"""Seconds: computing, sleeping, holding a pool's place, in a thread, for the client each way."""

Truth = defaultdict[str, float]
now = time.perf_counter


class Pool:
    """So many places, handed on in order; it says when. In the ledger as an adapter would do it."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: deque[asyncio.Future[float]] = deque()

    async def acquire(self) -> float:
        """Wait for a place; the moment it was handed over."""
        if self._free:
            self._free -= 1
            return now()
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        request = current()
        stay = None if request is None else request.stay()
        if stay is not None:
            stay.awaited = future
            stay.move(POOL_WAIT, now())
        try:
            return await future
        finally:
            if stay is not None:
                stay.move(NOWHERE, now())

    def release(self) -> None:
        """Hand the place on."""
        if self._waiting:
            self._waiting.popleft().set_result(now())
        else:
            self._free += 1


class Requests:
    """The requests of one run and the truth about them."""

    def __init__(self, *, places: int, threads: int) -> None:
        self.truth: Truth = defaultdict(float)
        self.pool = Pool(places)
        self.threads = ThreadPoolExecutor(threads)
        self.app = Loopscope(self.answer)

    def waited(self, phase: str, began: float, ready: float) -> None:
        """A wait in ``phase`` until ``ready``, and then for the loop."""
        self.truth[phase] += ready - began
        self.truth["loop_wait"] += now() - ready

    async def sleep(self, phase: str, seconds: float) -> None:
        """Wait for a known time."""
        began = now()
        await asyncio.sleep(seconds)
        self.waited(phase, began, min(began + seconds, now()))

    def compute(self) -> None:
        """Hold the loop."""
        until = now() + CPU
        while now() < until:
            pass

    async def ask_a_thread(self) -> None:
        """Queue for a thread, and wait for what it does."""
        asked = now()

        def work() -> tuple[float, float]:
            began = now()
            time.sleep(IN_THREAD)
            return began, now()

        began, ended = await asyncio.get_running_loop().run_in_executor(self.threads, work)
        self.truth["thread_wait"] += began - asked
        self.waited("thread_run", began, ended)

    async def use_the_pool(self) -> None:
        """Wait for a place and hold it."""
        asked = now()
        self.waited("pool_wait", asked, await self.pool.acquire())
        await self.sleep("await_other", HELD)
        self.pool.release()

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """All of it. No framework: that would wait where we do not see it."""
        await receive()
        self.compute()
        await self.sleep("await_other", SLEEP)
        await self.use_the_pool()
        await self.ask_a_thread()
        self.compute()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await send({"type": "http.response.body", "body": b"two"})

    async def one(self) -> None:
        """Call the app once, as a server with a slow client would."""

        async def receive() -> dict[str, Any]:
            await self.sleep("client_upload", CLIENT)
            return {"type": "http.request", "body": b"x", "more_body": False}

        async def send(message: Any) -> None:
            if message.get("body"):
                await self.sleep("client_download", CLIENT)

        await self.app(_scope(), receive, send)


def _scope() -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 1),
    }


def measured() -> tuple[dict[str, float], float]:
    """Seconds by phase, and of all requests, as published."""
    agent = current_agent()
    assert agent is not None
    phases: dict[str, float] = {}
    total = 0.0
    for family in agent.snapshot():
        for labels, raw in family.rows.items():
            if family.metric.name == PHASE.name:
                phases[labels[2]] = family.values(raw)[0]
            elif family.metric.name == DURATION.name:
                total += family.values(raw)[-1]
    return phases, total


def play(loop: str, at_once: int, rounds: int) -> dict[str, Any]:
    """Truth and what was measured of ``rounds`` times ``at_once`` requests."""

    async def run() -> dict[str, float]:
        requests = Requests(places=max(2, at_once // 20), threads=max(2, at_once // 20))
        for _ in range(rounds):
            await asyncio.gather(*(requests.one() for _ in range(at_once)))
        requests.threads.shutdown()
        return dict(requests.truth)

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        truth = runner.run(run())
    phases, total = measured()
    stop_agent()
    phases.pop("background", None)
    truth["loop_run"] = total - sum(truth.values())
    return {
        "loop": loop,
        "at_once": at_once,
        "requests": at_once * rounds,
        "duration": total,
        "truth": truth,
        "measured": phases,
    }


def near(result: dict[str, Any], phase: str) -> bool:
    """Whether what was measured of ``phase`` is near enough."""
    truth = float(result["truth"].get(phase, 0.0))
    off = abs(float(result["measured"].get(phase, 0.0)) - truth)
    return off <= max(ABSOLUTE * int(result["requests"]), RELATIVE * truth)


def show(result: dict[str, Any]) -> None:
    """One table: milliseconds a request by phase."""
    truth, found, count = result["truth"], result["measured"], result["requests"]
    rows = [
        (
            phase,
            f"{1000 * truth.get(phase, 0.0) / count:.2f}",
            f"{1000 * found.get(phase, 0.0) / count:.2f}",
            f"{1000 * (found.get(phase, 0.0) - truth.get(phase, 0.0)) / count:+.2f}",
            "" if near(result, phase) else "FAR",
        )
        for phase in sorted(truth.keys() | found.keys())
    ]
    title = f"{result['loop']}, {result['at_once']} at once: ms of a request"
    table(title, ("phase", "truth", "measured", "off by", ""), rows)


def judged(results: list[dict[str, Any]]) -> list[Verdict]:
    """Whether all phases are near enough and add up."""
    phases = [(result, phase) for result in results for phase in result["truth"]]
    good = sum(near(result, phase) for result, phase in phases)
    sums = [sum(each["measured"].values()) / each["duration"] for each in results]
    off = max(abs(each - 1.0) for each in sums)
    return [
        Verdict(
            f"each phase within {1000 * ABSOLUTE:g} ms or {RELATIVE:.0%} of the truth",
            f"{good} of {len(phases)}",
            good == len(phases),
        ),
        Verdict("phases add up to the duration", f"off by {off:.2e} at most", off < 1e-6),
    ]


def main() -> int:
    """Play, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 20, 200], metavar="N")
    parser.add_argument("--requests", type=int, default=400, help="of each run, about (400)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to this file")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if a verdict fails")
    options = parser.parse_args()
    os.environ.setdefault("LOOPSCOPE_LISTEN", "off")
    os.environ.setdefault("LOOPSCOPE_STALL_THRESHOLD", "1")
    describe(machine(("loopscope", "uvloop")))
    results = [
        play(loop, at_once, max(1, options.requests // at_once))
        for at_once in options.at_once
        for loop in LOOPS
    ]
    for result in results:
        show(result)
    found = judged(results)
    verdicts(found)
    if options.json:
        save(options.json, {"results": results})
    return int(options.enforce and broken(found))


if __name__ == "__main__":
    sys.exit(main())
