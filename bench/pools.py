"""What one acquire and release costs more with the agent on, per library, in microseconds of CPU.

In one process and in one request at a time: short slices of pairs with the agent attached alternate
with slices without it, so that whatever else the machine does hits both alike. Run it with `--help`
for the options; README.md beside it says how to read the result.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _pool_cases import CASES, Case, Pair
from _pool_servers import SERVERS, UnavailableError
from _stats import Spread, differences, middle_interval
from _table import console, describe, machine, save, table
from loopscope import Loopscope
from loopscope.agent import Agent, current_agent, stop_agent
from loopscope.sources.pools.metrics import USE

PACKAGES = (
    "loopscope",
    "asyncpg",
    "sqlalchemy",
    "psycopg-pool",
    "aiomysql",
    "redis",
    "pymongo",
    "aiohttp",
    "httpx",
    "httpcore",
    "httpx2",
    "httpcore2",
    "anyio",
)
_SLICE_S = 0.02
"""About as long as one slice is to take: beyond that, others have had the CPU more often."""
_FEWEST, _MOST = 20, 2000
"""Pairs a slice."""
_WARM_SHARE = 4
"""Pairs of a slice by the unmeasured ones before it: the agent has just patched everything anew."""


@dataclass
class Samples:
    """One library's slices in pairs, in µs of CPU per pair of acquire and release."""

    off: list[float] = field(default_factory=list)
    on: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    """For publishing what has been noted, which the agent's own thread does."""
    seen: int = 0
    """Uses the agent has seen, of as many as were ``made``."""
    made: int = 0

    def summary(self) -> dict[str, Any]:
        """What the JSON holds."""
        added = differences(self.on, self.off)
        return {
            "base_us": asdict(Spread.of(self.off)),
            "added_us": asdict(Spread.of(added)),
            "added_median_95_us": middle_interval(added),
            "added_fastest_us": min(self.on) - min(self.off),
            "later_us": asdict(Spread.of(self.later)),
            "recorded": self.seen / self.made if self.made else None,
        }


def main() -> int:
    """Measure, print, save."""
    options = parse()
    os.environ.setdefault("LOOPSCOPE_LISTEN", "off")
    os.environ.setdefault("LOOPSCOPE_STALL_THRESHOLD", "1")  # a slice holds the loop
    where = machine(PACKAGES)
    describe(where)
    results: dict[str, Any] = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        places: dict[str, Any] = {"": None}
        for case in options.cases:
            try:
                if case.server not in places:
                    places[case.server] = stack.enter_context(SERVERS[case.server]())
                result = asyncio.run(measure(case, places[case.server], options.rounds))
            except (ImportError, UnavailableError) as error:
                missing[case.key] = str(error)
            else:
                results[case.key] = {"title": case.title, **result}
    show(results, missing)
    if options.json:
        save(options.json, {"machine": where, "pools": results, "missing": missing})
    return 0


async def measure(case: Case, place: Any, rounds: int) -> dict[str, Any]:
    """Open the pool, and alternate; JSON-ready. One of `ImportError` without the library."""
    found = Samples()
    await in_request(asyncio.sleep, 0)  # starts an agent
    async with case.open(place) as pair:
        stop_agent()
        count = await fitting(pair)
        gc.collect()
        gc.freeze()
        draw = random.Random(0)
        for _ in range(rounds):
            for is_on in draw.sample((False, True), 2):
                if is_on:
                    await with_agent(case, pair, count, found)
                else:
                    found.off.append(await slice_of(pair, count))
    gc.unfreeze()
    return {"pairs_per_slice": count, "rounds": rounds, **found.summary()}


async def fitting(pair: Pair) -> int:
    """How many pairs are a slice."""
    await slice_of(pair, _FEWEST)
    each = await slice_of(pair, _FEWEST) / 1e6
    return max(_FEWEST, min(_MOST, int(_SLICE_S / each)))


async def with_agent(case: Case, pair: Pair, count: int, found: Samples) -> None:
    """One slice in a request under an agent that is there for it alone."""
    try:
        found.on.append(await in_request(slice_of, pair, count))
        agent = current_agent()
        assert agent is not None
        began = time.process_time_ns()
        agent.pools.book.fold(sys.maxsize)
        done = count + max(1, count // _WARM_SHARE)
        found.later.append((time.process_time_ns() - began) / done / 1e3)
        found.seen += uses(agent)
        found.made += case.uses * done
    finally:
        stop_agent()


async def slice_of(pair: Pair, count: int) -> float:
    """Microseconds of the whole process' CPU time for each of `count` pairs."""
    for _ in range(max(1, count // _WARM_SHARE)):
        await pair()
    began = time.process_time_ns()
    for _ in range(count):
        await pair()
    return (time.process_time_ns() - began) / count / 1e3


async def in_request(work: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
    """What `work` returns in a request that the agent measures."""
    result: Any = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal result
        result = await work(*arguments)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    await Loopscope(app)(
        {"type": "http", "method": "GET", "path": "/", "headers": []}, receive, send
    )
    return result


def uses(agent: Agent) -> int:
    """How many uses of pools have been published."""
    return sum(
        int(sum(family.values(raw)[:-1]))
        for family in agent.snapshot()
        if family.metric.name == USE.name
        for raw in family.rows.values()
    )


def show(results: dict[str, Any], missing: dict[str, str]) -> None:
    """Print the table."""
    columns = ("µs of CPU per pair", "base", "added", "95 % sure", "quartiles", "fastest", "later",
               "recorded")  # fmt: skip
    rows = [row(figures) for figures in results.values()]
    rows += [[CASES[key].title, "not measured"] for key in missing]
    table("one acquire and release in a request", columns, rows)
    for key, reason in missing.items():
        console.print(f"{CASES[key].title} is not measured: {reason}")


def row(figures: dict[str, Any]) -> list[str]:
    """One library's line."""
    added, (low, high) = figures["added_us"], figures["added_median_95_us"]
    share = figures["recorded"]
    return [
        figures["title"],
        f"{figures['base_us']['median']:.2f}",
        f"{added['median']:+.2f}",
        f"{low:+.2f} … {high:+.2f}",
        f"{added['q1']:+.2f} … {added['q3']:+.2f}",
        f"{figures['added_fastest_us']:+.2f}",
        f"{figures['later_us']['median']:.2f}",
        "" if share is None else f"{share:.0%}",
    ]


def parse() -> argparse.Namespace:
    """Read the command line; `cases` comes out as what is to be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60, help="pairs of slices (60)")
    parser.add_argument("--only", help=f"comma-separated, of: {', '.join(CASES)}")
    parser.add_argument("--json", type=Path, help="write the result to this file as well")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(CASES)
    unknown = [key for key in wanted if key not in CASES]
    if unknown:
        parser.error(f"unknown pool {', '.join(unknown)}: choose from {', '.join(CASES)}")
    options.cases = [CASES[key] for key in wanted]
    return options


if __name__ == "__main__":
    sys.exit(main())
