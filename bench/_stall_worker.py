"""The process that stalls.py starts for each tool and kind of loop.

Arguments: tool, event loop ("asyncio" or "uvloop"), kinds and durations in ms (both separated by
commas), seconds to settle. The first line out says that it is ready and which kinds it can play, or
why the tool is `missing`. Commands:

- `{"kind": …, "placement": …, "wanted_s": …, "phase_s": …}` waits for the phase, plays the stall,
  lets the tool settle, and answers with the `truth`;
- `{"control": name, "seconds": …}` answers with the `control`;
- `{"finish": true}` stops the tool and answers with its `reports`.

The stalls' payloads are made before the loop starts, so that only what is asked for blocks it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from typing import IO

from _pipe import Message, answer, claim_stdout, send
from _stall_controls import CONTROLS, EXCUSABLE, delays
from _stall_kinds import KINDS, Block, Kind, fill_heap
from _stall_loop_kinds import LOOP_KINDS, LoopKind
from _stall_placements import PLACEMENTS, Service
from _stall_records import Control, Report, Truth
from _stall_tools import TOOLS, UNUSABLE, Tool

Blocks = dict[tuple[str, float], Block]
"""What is ready to block, by kind and seconds."""


class Stage:
    """Plays stalls and controls on the running loop, with one tool watching."""

    def __init__(
        self, tool: Tool, kinds: dict[str, Kind | LoopKind], blocks: Blocks, settle_s: float
    ) -> None:
        self._tool = tool
        self._kinds = kinds
        self._blocks = blocks
        self._settle_s = settle_s
        self._service = Service(tool.wrap)
        self._played = 0
        self._reports: dict[str, Report] = {}

    async def start(self) -> None:
        """Start the tool, then the service, then its innocent requests."""
        await self._tool.start()
        await self._service.start()
        self._service.welcome_bystanders()
        await asyncio.sleep(4 * self._settle_s)

    async def handle(self, command: Message) -> Message:
        """Do what `command` says, see the module's docstring."""
        if "control" in command:
            return {"control": asdict(await self._control(command["control"], command["seconds"]))}
        if "finish" in command:
            return await self._finish()
        return {"truth": asdict(await self._play(**command))}

    async def _play(self, kind: str, placement: str, wanted_s: float, phase_s: float) -> Truth:
        played = self._kinds[kind]
        truth = Truth(kind, placement, wanted_s, played.lines, list(played.causes))
        await asyncio.sleep(phase_s)
        if isinstance(played, LoopKind):
            truth.culprits = list(played.culprits)
            await played.play(wanted_s, truth)
        else:
            await PLACEMENTS[placement](self._service, truth, self._blocks[kind, wanted_s])
        await asyncio.sleep(self._settle_s)
        self._played += 1
        self._collect()
        return truth

    async def _control(self, name: str, seconds: float) -> Control:
        """Let nothing block for a while; bystanders come back afterwards."""
        await self._service.dismiss_bystanders()
        await asyncio.sleep(self._settle_s)
        late: list[tuple[float, float]] = []
        watching = asyncio.create_task(delays(late)) if name in EXCUSABLE else None
        started, cpu = time.perf_counter(), time.process_time()
        await CONTROLS[name](seconds)
        cpu_s, ended = time.process_time() - cpu, time.perf_counter()
        if watching is not None:
            watching.cancel()
        await asyncio.sleep(self._settle_s)
        self._collect()
        self._service.welcome_bystanders()
        return Control(name, started, ended, cpu_s, late)

    async def _finish(self) -> Message:
        await self._service.dismiss_bystanders()
        self._collect()
        await self._tool.stop()
        self._collect()
        await self._service.stop()
        return {"reports": [asdict(report) for report in self._reports.values()]}

    def _collect(self) -> None:
        """Keep the latest version of every report, and when it was first seen."""
        for report in self._tool.reports():
            known = self._reports.get(report.id)
            report.after = self._played if known is None else known.after
            self._reports[report.id] = report


def playable(wanted: list[str]) -> dict[str, Kind | LoopKind]:
    """The kinds asked for whose package is installed."""
    every: list[Kind | LoopKind] = [*KINDS, *LOOP_KINDS]
    return {
        kind.key: kind
        for kind in every
        if kind.key in wanted and (not kind.package or importlib.util.find_spec(kind.package))
    }


async def perform(replies: IO[str], stage: Stage) -> None:
    """Answer commands until the parent closes the pipe."""
    try:
        await stage.start()
    except UNUSABLE as missing:
        send(replies, {"missing": str(missing)})
        return
    send(replies, {"ready": True})
    with suppress(asyncio.CancelledError):
        await answer(replies, stage.handle)


def main(
    replies: IO[str], name: str, loop: str, kinds: str, durations_ms: str, settle_s: str
) -> None:
    """Make payloads, start the loop with the tool, and play on command."""
    try:
        tool = TOOLS[name]()
    except UNUSABLE as missing:
        send(replies, {"missing": str(missing)})
        return
    known = playable(kinds.split(","))
    durations = [float(text) / 1000 for text in durations_ms.split(",")]
    blocks = {
        (kind.key, seconds): kind.prepare(seconds)
        for kind in known.values()
        for seconds in durations
    }
    fill_heap()
    send(replies, {"kinds": list(known)})
    with asyncio.Runner(loop_factory=tool.loop_factory(loop)) as runner:
        runner.run(perform(replies, Stage(tool, known, blocks, float(settle_s))))


if __name__ == "__main__":
    main(claim_stdout(), *sys.argv[1:])
