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
from pathlib import Path
from typing import Any

from _stall_controls import CONTROLS
from _stall_journal import Journal, Line, read, runs, sessions
from _stall_placements import PLACEMENTS
from _stall_plan import ALL_KINDS, HELD_KINDS, Shape, Stall, seconds_for
from _stall_play import Pair, Player
from _stall_tables import OWN, show
from _stall_tools import THRESHOLD_S, TOOLS
from _table import console, describe, machine

PACKAGES = (
    "loopscope",
    "uvloop",
    "aiocop",
    "aiodebug",
    "fastapi-loopguard",
    "loopsentry",
    "monitored-ioloop",
    "pyleak",
    "fastapi",
    "numpy",
    "pydantic",
)
LOOPS = ("asyncio", "uvloop")
_FLOOR = "none"
_FULL: dict[str, Any] = {
    "durations": "60,150,500",
    "extra_durations": "30,3000",
    "n": 10,
    "n_peers": 3,
    "quiet_minutes": 10.0,
    "busy_minutes": 1.0,
    "control_seconds": 5.0,
    "hold_seconds": 3.0,
}
_QUICK: dict[str, Any] = {
    "durations": "60,150",
    "extra_durations": "",
    "n": 2,
    "n_peers": 1,
    "quiet_minutes": 0.2,
    "busy_minutes": 0.1,
    "control_seconds": 2.0,
    "hold_seconds": 1.5,
}
_NO_SETTINGS = ("json", "read")
_PEERS_BUSY_SHARE = 0.25
"""How much of the minutes of busy work a peer gets: there are many of them."""


def main() -> int:
    """Play and print, or print what was played before."""
    options = parse()
    if options.read:
        lines = read(options.read)
        for session in sessions(lines):
            describe(session["machine"])
    else:
        lines = play(options)
    show(runs(lines))
    return 0


def play(options: argparse.Namespace) -> list[Line]:
    """Play everything that was asked for; the journal's lines."""
    where = machine(PACKAGES)
    describe(where)
    journal = Journal(options.json)
    settings = {name: value for name, value in vars(options).items() if name not in _NO_SETTINGS}
    journal.add(session={"machine": where, "settings": settings})
    pairs = [(tool, loop) for tool in options.tools for loop in options.loops]
    random.Random(options.seed).shuffle(pairs)
    plans = {tool: plan(tool, options) for tool in options.tools}
    announce(pairs, plans, options)
    player = Player(journal, options.settle)
    for number, pair in enumerate(pairs, 1):
        console.print(f"{number}/{len(pairs)}: {pair[0]} on {pair[1]}")
        player.measure(pair, plans[pair[0]], held(pair[0], options), spells(pair[0], options))
    if "idle" in options.controls:
        console.print(f"all of them: {options.quiet_minutes:g} quiet minutes")
        player.keep_quiet(pairs, options.quiet_minutes * 60)
    console.print()
    return journal.lines


def plan(tool: str, options: argparse.Namespace) -> list[Stall]:
    """The stalls for one tool: none for the floor, fewer of the same for the peers."""
    shape = Shape(
        options.kinds,
        options.placements,
        [duration / 1e3 for duration in options.durations],
        [duration / 1e3 for duration in options.extra_durations],
        options.seed,
    )
    times = {_FLOOR: 0, OWN: options.n}.get(tool, options.n_peers)
    return shape.draw(times)


def held(tool: str, options: argparse.Namespace) -> list[tuple[str, float]]:
    """The long stalls during which the tool is asked."""
    if tool == _FLOOR or not options.hold_seconds:
        return []
    return [(kind, options.hold_seconds) for kind in HELD_KINDS]


def spells(tool: str, options: argparse.Namespace) -> list[tuple[str, float]]:
    """The controls, with their seconds, that each tool has for itself: all but the quiet one."""
    busy = options.busy_minutes * 60 * (1 if tool == OWN else _PEERS_BUSY_SHARE)
    return [
        (name, busy if name == "busy" else options.control_seconds)
        for name in options.controls
        if name != "idle"
    ]


def announce(
    pairs: Sequence[Pair], plans: dict[str, list[Stall]], options: argparse.Namespace
) -> None:
    """Say what is to come, and how long it takes."""
    seconds = options.quiet_minutes * 60 if "idle" in options.controls else 0.0
    for tool, _ in pairs:
        spell_s = sum(s + 4 * options.settle for _, s in spells(tool, options))
        hold_s = sum(s + options.settle for _, s in held(tool, options))
        seconds += seconds_for(plans[tool], options.settle) + spell_s + hold_s
    stalls = ", ".join(
        f"{len(plans[tool])} for {who}"
        for tool, who in ((OWN, OWN), (_a_peer(plans), "each peer"))
        if tool in plans
    )
    console.print(
        f"stalls on each loop: {stalls or 'none'}; threshold {THRESHOLD_S * 1e3:g} ms;"
        f" seed {options.seed}\n"
        f"about {seconds / 60:.0f} minutes, if nobody else needs the machine\n"
    )


def _a_peer(plans: dict[str, Any]) -> str:
    return next((tool for tool in plans if tool not in (OWN, _FLOOR)), "")


def parse() -> argparse.Namespace:
    """Read the command line; lists come out as tuples of known names."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = {"tools": tuple(TOOLS), "loops": LOOPS, "kinds": ALL_KINDS}
    names |= {"placements": tuple(PLACEMENTS), "controls": tuple(CONTROLS)}
    for option, known in names.items():
        parser.add_argument(
            f"--{option}", default=",".join(known), help=f"of: {', '.join(known)}", metavar="A,B"
        )
    described = {
        "durations": (str, "of all stalls, in ms"),
        "extra_durations": (str, "of some kinds besides, half as often; may be empty"),
        "n": (int, f"how often each stall, with {OWN}"),
        "n_peers": (int, "with each peer"),
        "quiet_minutes": (float, "of idleness, all tools at once"),
        "busy_minutes": (float, f"of healthy load for {OWN}; a peer gets a quarter"),
        "control_seconds": (float, "of each other control"),
        "hold_seconds": (float, "of the stalls that are asked about; 0: none"),
    }
    for name, (kind, text) in described.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            type=kind,
            help=f"{text} ({_FULL[name] or 'none'}, quick {_QUICK[name] or 'none'})",
        )
    parser.add_argument(
        "--settle",
        type=float,
        default=0.2,
        help="seconds for a tool to report in, after each (0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of all orders and phases (0)")
    parser.add_argument("--quick", action="store_true", help="for a first look")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add everything to this file")
    parser.add_argument(
        "--from",
        dest="read",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="play nothing, print the tables of these files together",
    )
    options = parser.parse_args()
    for name, value in (_QUICK if options.quick else _FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for option, known in names.items():
        setattr(options, option, chosen(parser, option, getattr(options, option), known))
    options.durations = milliseconds(parser, options.durations)
    options.extra_durations = milliseconds(parser, options.extra_durations)
    return options


def chosen(
    parser: argparse.ArgumentParser, what: str, wanted: str, known: tuple[str, ...]
) -> tuple[str, ...]:
    """The names asked for."""
    names = tuple(filter(None, wanted.split(",")))
    unknown = [name for name in names if name not in known]
    if unknown:
        parser.error(f"--{what} {', '.join(unknown)}: choose from {', '.join(known)}")
    return names


def milliseconds(parser: argparse.ArgumentParser, text: str) -> tuple[float, ...]:
    """The durations asked for."""
    durations = tuple(float(each) for each in filter(None, text.split(",")))
    if not all(10 <= duration <= 5000 for duration in durations):
        parser.error("durations are milliseconds from 10 to 5000")
    return durations


if __name__ == "__main__":
    sys.exit(main())
