"""The process that stalls.py starts for each tool and kind of loop.

Its argument is the `Orders` as JSON. The first line out says which kinds it can play and what sizes
of payloads it found, the second that it is ready and where the tool can be asked (`url`); either
says instead why the tool is `missing`. Commands:

- `{"kind": …, "placement": …, "wanted_s": …, "phase_s": …}` waits for the phase, plays the stall,
  lets the tool settle, and answers with the `truth`;
- `{"hold": kind, "seconds": …}` plays a long stall, has a thread ask the tool all the while, and
  answers with the `hold`;
- `{"control": name, "seconds": …}` answers with the `control`;
- `{"finish": true}` stops the tool.

Each answer brings the `reports` that are new or have changed since the one before. The stalls'
payloads are made before the loop starts, so that only what is asked for blocks it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from typing import IO

from _pipe import Message, answer, claim_stdout, send
from _stall_controls import CONTROLS, EXCUSABLE, delays
from _stall_kinds import KINDS, SIZES, Block, Kind, fill_heap
from _stall_loop_kinds import LOOP_KINDS, LoopKind, queued_s
from _stall_placements import PLACEMENTS, Service
from _stall_records import Answer, Control, Hold, Report, Truth
from _stall_tools import TOOLS, UNUSABLE, Tool

Blocks = dict[tuple[str, float], Block]
"""What is ready to block, by kind and seconds."""

_ASK_SECONDS = 0.05
_HELD_PLACEMENT = "handler"


@dataclass
class Orders:
    """What a worker is started for."""

    tool: str
    loop: str
    blocks: list[tuple[str, float]]
    """Kinds and seconds to be ready for."""
    settle_s: float
    """How long a tool gets to report in, after each stall."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Of payloads, as another worker found them."""


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
            control = await self._control(command["control"], command["seconds"])
            said: Message = {"control": asdict(control)}
        elif "hold" in command:
            said = {"hold": asdict(await self._hold(command["hold"], command["seconds"]))}
        elif "finish" in command:
            said = {}
            await self._finish()
        else:
            said = {"truth": asdict(await self._play(**command))}
        return {**said, "reports": [asdict(report) for report in self._news()]}

    async def _play(self, kind: str, placement: str, wanted_s: float, phase_s: float) -> Truth:
        await asyncio.sleep(phase_s)
        truth = await self._block(kind, placement, wanted_s)
        await asyncio.sleep(self._settle_s)
        return truth

    async def _hold(self, kind: str, seconds: float) -> Hold:
        answers: list[Answer] = []
        # A tool that listens is asked by our parent, as its user would ask.
        with nullcontext() if self._tool.url() else asking(self._tool, answers):
            truth = await self._play(kind, _HELD_PLACEMENT, seconds, 0.0)
        return Hold(truth, answers)

    async def _block(self, kind: str, placement: str, wanted_s: float) -> Truth:
        played = self._kinds[kind]
        truth = Truth(kind, placement, wanted_s, played.lines, list(played.causes), played.names)
        if isinstance(played, LoopKind):
            truth.culprits = list(played.culprits)
            await played.play(wanted_s, truth)
        else:
            await PLACEMENTS[placement](self._service, truth, self._blocks[kind, wanted_s])
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
        self._service.welcome_bystanders()
        return Control(name, started, ended, cpu_s, late)

    async def _finish(self) -> None:
        await self._service.dismiss_bystanders()
        await self._tool.stop()

    def _news(self) -> Iterator[Report]:
        """Reports that are new, or say something else than before."""
        for report in self._tool.reports():
            known = self._reports.get(report.id)
            if known is None or _said(known) != _said(report):
                self._reports[report.id] = report
                yield report


def _said(report: Report) -> tuple[object, ...]:
    """What makes a report another one; its start moves with the clocks."""
    return report.duration_s, report.location, report.culprit, report.causes


@contextmanager
def asking(tool: Tool, answers: list[Answer]) -> Iterator[None]:
    """Have a thread ask `tool` again and again, and keep what it had not said before."""
    done = threading.Event()
    known = {report.id for report in tool.reports()}

    def ask() -> None:
        while not done.wait(_ASK_SECONDS):
            said = [report for report in tool.live() if report.id not in known]
            answers.extend(Answer(time.perf_counter(), report) for report in said)

    thread = threading.Thread(target=ask, name="asker")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def playable(wanted: set[str]) -> dict[str, Kind | LoopKind]:
    """The kinds asked for whose package is installed."""
    every: list[Kind | LoopKind] = [*KINDS, *LOOP_KINDS]
    return {
        kind.key: kind
        for kind in every
        if kind.key in wanted and (not kind.package or importlib.util.find_spec(kind.package))
    }


async def perform(replies: IO[str], stage: Stage, tool: Tool) -> None:
    """Answer commands until the parent closes the pipe."""
    try:
        await stage.start()
    except UNUSABLE as missing:
        send(replies, {"missing": str(missing)})
        return
    send(replies, {"url": tool.url()})
    with suppress(asyncio.CancelledError):
        await answer(replies, stage.handle)


def main(replies: IO[str], orders: Orders) -> None:
    """Make payloads, start the loop with the tool, and play on command."""
    try:
        tool = TOOLS[orders.tool]()
    except UNUSABLE as missing:
        send(replies, {"missing": str(missing)})
        return
    SIZES.update(orders.sizes)
    known = playable({kind for kind, _ in orders.blocks})
    blocks = {
        (kind, seconds): known[kind].prepare(seconds)
        for kind, seconds in orders.blocks
        if kind in known
    }
    fill_heap()
    queued_s()
    send(replies, {"kinds": list(known), "sizes": SIZES})
    stage = Stage(tool, known, blocks, orders.settle_s)
    with asyncio.Runner(loop_factory=tool.loop_factory(orders.loop)) as runner:
        runner.run(perform(replies, stage, tool))


if __name__ == "__main__":
    main(claim_stdout(), Orders(**json.loads(sys.argv[1])))
