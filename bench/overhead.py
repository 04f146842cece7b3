"""How much a request costs more with each way of measuring it, in microseconds, in process.

One process per contender, driven in short slices that alternate with slices of the bare
application, so that whatever else the machine does hits both alike. Run it with `--help` for the
options; README.md beside it says how to read the result.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from _contenders import CONTENDERS
from _pipe import Message, Worker
from _promises import overhead_verdicts
from _stats import Spread, differences, middle_interval
from _table import broken, console, describe, machine, save, table, verdicts
from _workloads import Workload, workloads

QUICK_CONTENDERS = ("bare", "bare-again", "nothing", "loopscope", "instrumentator")
PACKAGES = (
    "loopscope",
    "fastapi",
    "starlette",
    "uvloop",
    "prometheus-client",
    "prometheus-fastapi-instrumentator",
    "starlette-exporter",
    "opentelemetry-instrumentation-asgi",
)
_WARM_SHARE = 4
"""Requests of a slice by the unmeasured ones before it: other processes had the caches."""
_FEWEST = 4
_SETTLE_REQUESTS = 400


@dataclass
class Samples:
    """One contender's slices, each beside the slice of the bare application next to it."""

    own: list[Message] = field(default_factory=list)
    bare: list[Message] = field(default_factory=list)
    recorded: float | None = None

    def add(self, own: Message, bare: Message) -> None:
        """Keep one pair of slices."""
        self.own.append(own)
        self.bare.append(bare)

    def added(self, what: str, units: int) -> list[float]:
        """The paired differences of one field of `_driver.Slice`, in µs per unit."""
        return differences(in_us(self.own, what, units), in_us(self.bare, what, units))

    def summary(self, units: int) -> dict[str, Any]:
        """What the JSON holds: every figure in µs per unit, `recorded` as a share of requests."""
        own, bare = (in_us(slices, "typical_ns", units) for slices in (self.own, self.bare))
        added = self.added("typical_ns", units)
        return {
            "typical_us": asdict(Spread.of(own)),
            "bare_us": asdict(Spread.of(bare)),
            "added_us": asdict(Spread.of(added)),
            "added_median_95_us": middle_interval(added),
            "added_fastest_us": min(own) - min(bare),
            "mean_added_us": asdict(Spread.of(self.added("mean_ns", units))),
            "cpu_added_us": asdict(Spread.of(self.added("cpu_ns", units))),
            "recorded": self.recorded,
        }


def in_us(slices: Sequence[Message], what: str, units: int) -> list[float]:
    """One field of the slices, from nanoseconds per request to microseconds per unit."""
    return [found[what] / units / 1e3 for found in slices]


def main() -> int:
    """Measure, print, save; the exit code says "broken promise" only with --enforce."""
    options = parse()
    where = machine(PACKAGES)
    describe(where)
    results = []
    for load in options.workloads:
        result = measure(load, options)
        show(load, result)
        results.append(result)
    found = overhead_verdicts(results)
    verdicts(found)
    if options.json:
        settings = {name: getattr(options, name) for name in ("loop", "drive", "cpu", "rounds")}
        kept = [asdict(verdict) for verdict in found]
        save(
            options.json,
            {"machine": where, "settings": settings, "workloads": results, "verdicts": kept},
        )
    return int(options.enforce and broken(found))


def measure(load: Workload, options: argparse.Namespace) -> dict[str, Any]:
    """Run every contender on one workload; JSON-ready."""
    with ExitStack() as stack:
        workers, missing = start(load, options, stack)
        requests = max(_FEWEST, options.requests // load.weight)
        settle(workers, max(_FEWEST, _SETTLE_REQUESTS // load.weight))
        samples = interleave(workers, options.rounds, requests)
        for name, worker in workers.items():
            samples[name].recorded = recorded_share(worker)
    return {
        "workload": load.key,
        "title": load.title,
        "unit": load.unit,
        "requests_per_slice": requests,
        "contenders": {name: found.summary(load.units) for name, found in samples.items()},
        "missing": missing,
    }


def start(
    load: Workload, options: argparse.Namespace, stack: ExitStack
) -> tuple[dict[str, Worker], dict[str, str]]:
    """Start one process per contender, together; those without their library are left out."""
    arguments = (load.key, options.routes, options.loop, options.drive, options.cpu)
    started = {
        name: stack.enter_context(Worker("_overhead_worker.py", name, *arguments))
        for name in options.contenders
    }
    greetings = {name: worker.hear() for name, worker in started.items()}
    missing = {name: said["missing"] for name, said in greetings.items() if "missing" in said}
    return {name: worker for name, worker in started.items() if name not in missing}, missing


def settle(workers: dict[str, Worker], requests: int) -> None:
    """Warm caches and memos up, then take what exists out of the collector's sight."""
    for worker in workers.values():
        worker.ask(run=requests, warm=1)
        worker.ask(freeze=True)


def interleave(workers: dict[str, Worker], rounds: int, requests: int) -> dict[str, Samples]:
    """Each contender once a round, next to a slice of the bare application; orders are drawn."""
    samples = {name: Samples() for name in workers}
    draw = random.Random(0)
    warm = max(1, requests // _WARM_SHARE)
    for _ in range(rounds):
        for name in draw.sample(list(workers), len(workers)):
            pair = draw.sample(sorted({name, "bare"}), len({name, "bare"}))
            took = {one: workers[one].ask(run=requests, warm=warm) for one in pair}
            samples[name].add(took[name], took["bare"])
    return samples


def recorded_share(worker: Worker) -> float | None:
    """Recorded requests by requests made; None for a contender that records nothing."""
    counts = worker.ask(count=True)
    recorded: float | None = counts["recorded"]
    return None if recorded is None else recorded / counts["made"]


def show(load: Workload, result: dict[str, Any]) -> None:
    """Print one workload's table."""
    rows = [row(name, figures) for name, figures in result["contenders"].items()]
    rows += [[name, "not installed"] for name in result["missing"]]
    columns = (
        f"µs per {load.unit}",
        "typical",
        "added",
        "95 % sure",
        "quartiles",
        "fastest",
        "mean",
        "CPU",
        "recorded",
    )
    table(f"{load.title} [{load.key}]", columns, rows)
    for name, reason in result["missing"].items():
        console.print(f"{name} is not installed: {reason}\n")


def row(name: str, figures: dict[str, Any]) -> list[str]:
    """One contender's line; the bare application has nothing added."""
    typical = f"{figures['typical_us']['median']:.2f}"
    if name == "bare":
        return [name, typical]
    added, (low, high) = figures["added_us"], figures["added_median_95_us"]
    share = figures["recorded"]
    return [
        name,
        typical,
        f"{added['median']:+.2f}",
        f"{low:+.2f} … {high:+.2f}",
        f"{added['q1']:+.2f} … {added['q3']:+.2f}",
        f"{figures['added_fastest_us']:+.2f}",
        f"{figures['mean_added_us']['median']:+.2f}",
        f"{figures['cpu_added_us']['median']:+.2f}",
        "" if share is None else f"{share:.0%}",
    ]


def parse() -> argparse.Namespace:
    """Read the command line; `workloads` and `contenders` come out as what is to be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="slices per contender (default 60, quick 50)")
    parser.add_argument("--requests", type=int, default=40, help="plain requests per slice")
    parser.add_argument("--contenders", help=f"comma-separated, of: {', '.join(CONTENDERS)}")
    parser.add_argument("--routes", default="1,100", help="numbers of routes for the plain GET")
    parser.add_argument("--only", help="comma-separated workload keys, such as get-1,stream")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument(
        "--drive",
        choices=("await", "task"),
        default="await",
        help="await requests in place, or give each a task of its own as servers do",
    )
    parser.add_argument(
        "--cpu",
        default=str(max(os.sched_getaffinity(0))),
        help="the CPU every contender runs on, all threads included (default the last), or any",
    )
    parser.add_argument("--quick", action="store_true", help="only what the verdict needs")
    parser.add_argument("--json", type=Path, help="write the result to this file as well")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 on a broken promise")
    options = parser.parse_args()
    options.rounds = options.rounds or (50 if options.quick else 60)
    options.workloads = chosen_workloads(parser, options)
    options.contenders = chosen_contenders(parser, options)
    return options


def chosen_workloads(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> list[Workload]:
    """The workloads named by --only, those of the verdict when quick, or all."""
    counts = [int(count) for count in options.routes.split(",")]
    known = {load.key: load for load in workloads(counts)}
    wanted = list(known)
    if options.quick:
        wanted = [*(f"get-{count}" for count in counts), "starlette", "stream"]
    if options.only:
        wanted = options.only.split(",")
    unknown = [key for key in wanted if key not in known]
    if unknown:
        parser.error(f"unknown workload {', '.join(unknown)}: choose from {', '.join(known)}")
    return [known[key] for key in wanted]


def chosen_contenders(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> tuple[str, ...]:
    """The contenders named, always with the bare application, which all are paired with."""
    wanted = QUICK_CONTENDERS if options.quick else tuple(CONTENDERS)
    if options.contenders:
        wanted = tuple(options.contenders.split(","))
    unknown = [name for name in wanted if name not in CONTENDERS]
    if unknown:
        parser.error(f"unknown contender {', '.join(unknown)}: choose from {', '.join(CONTENDERS)}")
    return ("bare", *(name for name in wanted if name != "bare"))


if __name__ == "__main__":
    sys.exit(main())
