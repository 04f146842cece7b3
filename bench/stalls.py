"""Which stalls of the event loop each detector finds, and whether it blames the right line.

One process per tool and kind of loop plays the same stalls, in an order drawn once, and knows the
truth about each. Run it with `--help` for the options; README.md beside it says how to read the
result.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from _pipe import Message, Worker, WorkerError
from _stall_controls import CONTROLS
from _stall_kinds import KINDS
from _stall_loop_kinds import LOOP_KINDS
from _stall_placements import PLACEMENTS
from _stall_records import Control, Report, Truth
from _stall_scores import percent, score
from _stall_tools import THRESHOLD_S, TOOLS
from _table import console, describe, machine, save, table

PACKAGES = (
    "loopscope",
    "uvloop",
    "aiocop",
    "aiodebug",
    "fastapi-loopguard",
    "loopsentry",
    "monitored-ioloop",
    "pyleak",
    "numpy",
    "pydantic",
)
LOOPS = ("asyncio", "uvloop")
ALL_KINDS = tuple(kind.key for kind in (*KINDS, *LOOP_KINDS))
_ON_THE_LOOP = frozenset(kind.key for kind in LOOP_KINDS)
_PHASE_S = 0.1
"""Longer than any heartbeat: where in a beat a stall begins is left to chance."""


@dataclass(frozen=True)
class Stall:
    """One stall to be played."""

    kind: str
    placement: str
    wanted_s: float
    phase_s: float


def main() -> int:
    """Play, print, save."""
    options = parse()
    where = machine(PACKAGES)
    describe(where)
    plan = draw(options)
    console.print(
        f"{len(plan)} stalls for each tool and loop, threshold {THRESHOLD_S * 1e3:g} ms\n"
    )
    results = []
    for loop in options.loops:
        found = [measure(tool, loop, plan, options) for tool in options.tools]
        show(loop, found)
        results += found
    if options.json:
        settings = {
            name: getattr(options, name)
            for name in ("tools", "loops", "only", "durations", "repeat", "seed", "settle")
        }
        save(options.json, {"machine": where, "settings": settings, "results": results})
    return 0


def draw(options: argparse.Namespace) -> list[Stall]:
    """Every kind and duration as often as asked for, in turn in each place, in a drawn order."""
    chance = random.Random(options.seed)
    plan = [
        Stall(
            kind,
            "loop" if kind in _ON_THE_LOOP else options.placements[turn % len(options.placements)],
            duration / 1e3,
            chance.uniform(0, _PHASE_S),
        )
        for number, kind in enumerate(options.only)
        for place, duration in enumerate(options.durations)
        for turn in range(number + place, number + place + options.repeat)
    ]
    chance.shuffle(plan)
    return plan


def measure(
    tool: str, loop: str, plan: Sequence[Stall], options: argparse.Namespace
) -> dict[str, Any]:
    """Play the plan to one tool on one loop; JSON-ready."""
    named = {"tool": tool, "loop": loop}
    durations = ",".join(f"{duration:g}" for duration in options.durations)
    arguments = (tool, loop, ",".join(options.only), durations, str(options.settle))
    with Worker("_stall_worker.py", *arguments) as worker:
        greeting = worker.hear()
        known = greeting.get("kinds", [])
        ready = greeting if "missing" in greeting else worker.hear()
        if "missing" in ready:
            console.print(f"{tool} is left out on {loop}: {ready['missing']}")
            return {**named, "missing": ready["missing"]}
        try:
            truths = play(worker, [stall for stall in plan if stall.kind in known])
            controls = [control(worker, name, options.control_seconds) for name in options.controls]
            reports = [Report(**said) for said in worker.ask(finish=True)["reports"]]
        except WorkerError as error:
            console.print(f"{tool} is left out on {loop}: it did not survive ({error})")
            return {**named, "missing": str(error)}
    scored = score(truths, controls, reports)
    console.print(f"{tool} on {loop}: detected {percent(scored['detected'])}")
    unknown = [kind for kind in options.only if kind not in known]
    if unknown:
        console.print(f"{tool} on {loop}: without {', '.join(unknown)}, which is not installed")
    return {
        **named,
        "score": scored,
        "truths": [asdict(truth) for truth in truths],
        "controls": [asdict(spell) for spell in controls],
        "reports": [asdict(report) for report in reports],
    }


def play(worker: Worker, plan: Sequence[Stall]) -> list[Truth]:
    """Have every stall of the plan played."""
    return [Truth(**worker.ask(**asdict(stall))["truth"]) for stall in plan]


def control(worker: Worker, name: str, seconds: float) -> Control:
    """Have one control played."""
    said: Message = worker.ask(control=name, seconds=seconds)["control"]
    return Control(**said)


def show(loop: str, results: Sequence[dict[str, Any]]) -> None:
    """Print the tables of one loop."""
    scored = {found["tool"]: found["score"] for found in results if "score" in found}
    if not scored:
        return
    durations = next(iter(scored.values()))["by_duration"]
    columns = (
        f"on {loop}",
        "detected %",
        "/".join(durations) + " ms",
        "line",
        "wrong",
        "culprit",
        "cause",
        "error ms",
        "events",
        "alarms",
        "idle CPU",
    )
    table(f"Stalls found on {loop}", columns, [row(*item) for item in scored.items()])
    watching = [tool for tool in scored if tool != "none"]
    rows = []
    for part, listed in (("by_kind", ALL_KINDS), ("by_placement", (*PLACEMENTS, "loop"))):
        found = [scored[tool][part] for tool in watching]
        names = [name for name in listed if any(name in groups for groups in found)]
        rows += [[name, *(cell(groups.get(name)) for groups in found)] for name in names]
    if rows:
        table("Detected·located/of, by kind and placement", (f"on {loop}", *watching), rows)


def row(tool: str, found: dict[str, Any]) -> list[str]:
    """One tool's line; what a tool never says is a dash, not a nought."""
    says, error = found["says"], found["error_ms"]
    alarms = [f"{name} {count}" for name, count in found["false_alarms"].items() if count]
    if found["stray"]:
        alarms.append(f"stray {found['stray']}")
    return [
        tool,
        percent(found["detected"], sure=True),
        "/".join(str(hits) for hits, _ in found["by_duration"].values()),
        percent(found["located"]) if says["location"] else "—",
        percent(found["wronged"]) if says["location"] or says["culprit"] else "—",
        percent(found["identified"]) if says["culprit"] else "—",
        percent(found["explained"]) if says["cause"] else "—",
        f"{error['median']:.1f}/{error['p95']:.1f}" if error else "—",
        f"{found['events_per_stall']:.1f}" if found["events_per_stall"] else "—",
        ", ".join(alarms) or "0",
        "—" if found["idle_cpu"] is None else f"{found['idle_cpu']:.2%}",
    ]


def cell(found: dict[str, Any] | None) -> str:
    """Detected · located / of, of one kind with one tool."""
    if found is None:
        return ""
    detected, of = found["detected"]
    return f"{detected}·{found['located'][0]}/{of}"


def parse() -> argparse.Namespace:
    """Read the command line; lists come out as tuples of known names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", help=f"comma-separated, of: {', '.join(TOOLS)}")
    parser.add_argument("--loops", help=f"comma-separated, of: {', '.join(LOOPS)}")
    parser.add_argument("--only", help=f"kinds, comma-separated, of: {', '.join(ALL_KINDS)}")
    parser.add_argument("--placements", help=f"comma-separated, of: {', '.join(PLACEMENTS)}")
    parser.add_argument("--controls", help=f"comma-separated, of: {', '.join(CONTROLS)}")
    parser.add_argument(
        "--durations", default="60,150,500", help="of the stalls in ms, 30 to 3000, comma-separated"
    )
    parser.add_argument(
        "--repeat", type=int, help="how often each kind and duration (default 10, quick 3)"
    )
    parser.add_argument(
        "--settle", type=float, default=0.2, help="seconds for a tool to report in, after each"
    )
    parser.add_argument(
        "--control-seconds", type=float, help="length of each control (default 10, quick 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the order and the phases")
    parser.add_argument("--quick", action="store_true", help="fewer repeats, shorter controls")
    parser.add_argument("--json", type=Path, help="write everything to this file as well")
    options = parser.parse_args()
    options.repeat = options.repeat or (3 if options.quick else 10)
    options.control_seconds = options.control_seconds or (3.0 if options.quick else 10.0)
    options.tools = chosen(parser, "tool", options.tools, tuple(TOOLS))
    options.loops = chosen(parser, "loop", options.loops, LOOPS)
    options.only = chosen(parser, "kind", options.only, ALL_KINDS)
    options.placements = chosen(parser, "placement", options.placements, tuple(PLACEMENTS))
    options.controls = chosen(parser, "control", options.controls, tuple(CONTROLS))
    options.durations = tuple(float(text) for text in options.durations.split(","))
    if not all(30 <= duration <= 3000 for duration in options.durations):
        parser.error("--durations takes milliseconds from 30 to 3000")
    return options


def chosen(
    parser: argparse.ArgumentParser, what: str, wanted: str | None, known: tuple[str, ...]
) -> tuple[str, ...]:
    """The names asked for, or all."""
    names = tuple(wanted.split(",")) if wanted else known
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"unknown {what} {', '.join(unknown)}: choose from {', '.join(known)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
