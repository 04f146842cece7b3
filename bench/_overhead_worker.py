"""The process that overhead.py starts for each contender: one app, driven on command.

Arguments: contender, workload key, numbers of routes, event loop ("asyncio" or "uvloop"), way of
driving ("await" or "task"), CPU to stay on ("any" for no matter). Commands: `{"run": requests,
"warm": requests}` answers with the fields of `_driver.Slice`, `{"freeze": true}` settles the
garbage collector, `{"count": true}` says how many requests were made and how many the contender
recorded.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import IO

import uvloop

from _contenders import CONTENDERS, UNUSABLE, Count
from _driver import Driver
from _pipe import Message, answer, claim_stdout, send
from _workloads import Workload, workloads


class Bench:
    """Answers the parent's commands for one contender and one workload."""

    def __init__(self, driver: Driver, recorded: Count | None) -> None:
        self._driver = driver
        self._recorded = recorded

    async def handle(self, command: Message) -> Message:
        """Do what `command` says, see the module's docstring."""
        if "freeze" in command:
            return self._freeze()
        if "count" in command:
            return await self._count()
        await self._driver.run(command["warm"])
        took = await self._driver.run(command["run"])
        return asdict(took)

    def _freeze(self) -> Message:
        """What exists by now is never scanned again; collections go on for what comes."""
        gc.collect()
        gc.freeze()
        return {}

    async def _count(self) -> Message:
        if self._recorded is None:
            return {"made": self._driver.made, "recorded": None}
        recorded = await asyncio.to_thread(self._recorded)
        return {"made": self._driver.made, "recorded": recorded}


def build(contender: str, workload: Workload, tasks: bool) -> Bench:
    """The application with the contender in it; one of `UNUSABLE` without its library."""
    app = workload.app()
    recorded = CONTENDERS[contender](app)
    return Bench(Driver(app, workload, tasks), recorded)


def main(
    replies: IO[str], contender: str, key: str, routes: str, loop: str, drive: str, cpu: str
) -> None:
    """Build, say so, and answer until the parent closes the pipe."""
    known = {load.key: load for load in workloads([int(count) for count in routes.split(",")])}
    try:
        bench = build(contender, known[key], tasks=drive == "task")
    except UNUSABLE as missing:
        send(replies, {"missing": str(missing)})
        return
    if cpu != "any":
        os.sched_setaffinity(0, {int(cpu)})
    send(replies, {"ready": True})
    with asyncio.Runner(loop_factory=_loop_factory(loop)) as runner:
        runner.run(answer(replies, bench.handle))


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    return uvloop.new_event_loop if loop == "uvloop" else asyncio.new_event_loop


if __name__ == "__main__":
    main(claim_stdout(), *sys.argv[1:])
