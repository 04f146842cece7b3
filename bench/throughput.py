"""Requests a second of a real service, with and without the agent, the two taking turns.

uvicorn (uvloop, httptools), FastAPI, asyncpg and PostgreSQL, loaded by wrk. Both services stay up
for the whole run; each pair of runs loads first one, then the other, and the next pair the other
way round, so that a machine that slows down or speeds up favours neither.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

import _wrk
from _contenders import UNUSABLE
from _database import database
from _net import fetch, free_port, total
from _pipe import HERE, clean_environment
from _promises import throughput_verdict
from _stats import Spread, middle_interval, ratios
from _table import broken, console, describe, machine, save, table, verdicts
from _wrk import Load

PACKAGES = ("loopscope", "fastapi", "uvicorn", "uvloop", "httptools", "asyncpg")
INSTALL_WRK = "wrk is missing. Install it, on Debian and Ubuntu with: apt-get install wrk"
_START_SECONDS = 30.0


@dataclass
class Service:
    """One running service, and the runs of wrk against it."""

    name: str
    url: str
    process: psutil.Process
    metrics: str | None = None
    loads: list[Load] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)
    requests: int = 0

    def warm(self, seconds: int, connections: int) -> None:
        """Run wrk once, only to have run it."""
        self.requests += _wrk.run(self.url, seconds, connections).requests

    def load(self, seconds: int, connections: int) -> None:
        """Run wrk once, and keep what it found and the CPU time the service took."""
        before = sum(self.process.cpu_times()[:2])
        found = _wrk.run(self.url, seconds, connections)
        self.cpu_us.append((sum(self.process.cpu_times()[:2]) - before) / found.requests * 1e6)
        self.loads.append(found)
        self.requests += found.requests

    def recorded(self) -> float | None:
        """Requests the agent has recorded by requests wrk has made."""
        if self.metrics is None:
            return None
        count = total(fetch(self.metrics), "http_server_request_duration_seconds_count")
        return count / self.requests


def main() -> int:
    """Measure, print, save; the exit code says "broken promise" only with --enforce."""
    options = parse()
    if not _wrk.installed():
        console.print(INSTALL_WRK)
        return 2
    where = machine(PACKAGES)
    describe(where)
    cpu = split_cpus()
    with database() as dsn, services(dsn, options.agent, cpu) as (without, with_agent):
        alternate([without, with_agent], options)
        found = summary(without, with_agent)
    show(found, options.agent)
    judged = [throughput_verdict(found["ratio"]["median"], spread(found))] if options.agent else []
    verdicts(judged)
    if options.json:
        kept = [asdict(verdict) for verdict in judged]
        save(options.json, {"machine": where, **found, "verdicts": kept})
    return int(options.enforce and broken(judged))


def split_cpus() -> int | None:
    """Keep one CPU for the services and run all else on the others; None if there is only one.

    Both services share that CPU, so it is the bottleneck and the same one for both; the one not
    under load is idle. The agent's threads are on it too, so their work counts.
    """
    *others, last = sorted(os.sched_getaffinity(0))
    if not others:
        return None
    os.sched_setaffinity(0, others)
    return last


@contextmanager
def services(dsn: str, agent: bool, cpu: int | None) -> Iterator[tuple[Service, Service]]:
    """Both services, up and answering."""
    listen = f"127.0.0.1:{free_port()}"
    settings = {"BENCH_AGENT": "1", "LOOPSCOPE_LISTEN": listen} if agent else {}
    with (
        serve("without", dsn, {}, cpu) as without,
        serve("with", dsn, settings, cpu) as with_agent,
    ):
        if agent:
            with_agent.metrics = f"http://{listen}/metrics"
        yield without, with_agent


@contextmanager
def serve(name: str, dsn: str, settings: Mapping[str, str], cpu: int | None) -> Iterator[Service]:
    """Run one service process, on `cpu` if given, for as long as the block lasts."""
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "_service:app", "--app-dir", str(HERE)]
    command += ["--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    command += ["--no-access-log", "--log-level", "warning"]
    env = {**clean_environment(), "BENCH_DSN": dsn, "BENCH_POOL": "8", **settings}
    process = subprocess.Popen(command, env=env)
    if cpu is not None:
        os.sched_setaffinity(process.pid, {cpu})
    try:
        service = Service(name, f"http://127.0.0.1:{port}", psutil.Process(process.pid))
        wait_for(service.url + "/ready", process)
        service.requests = 1
        yield service
    finally:
        process.terminate()
        process.wait(timeout=_START_SECONDS)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until `url` answers; raises `RuntimeError` when the process ends or time is up."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            fetch(url)
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise RuntimeError(f"the service at {url} did not start, see its output above")


def alternate(services: Sequence[Service], options: argparse.Namespace) -> None:
    """Warm both up, then load them in pairs, each pair in the other order than the one before."""
    for service in services:
        service.warm(options.warm, options.connections)
    for pair in range(options.pairs):
        for service in services if pair % 2 == 0 else reversed(services):
            service.load(options.seconds, options.connections)


def summary(without: Service, with_agent: Service) -> dict[str, Any]:
    """The JSON part: each service's runs and their spread, and the ratio of the pairs."""
    paired = ratios(
        [load.per_second for load in with_agent.loads], [load.per_second for load in without.loads]
    )
    return {
        "services": {service.name: figures(service) for service in (without, with_agent)},
        "ratios": paired,
        "ratio": asdict(Spread.of(paired)),
        "ratio_median_95": middle_interval(paired),
        "cpu_ratio": asdict(Spread.of(ratios(with_agent.cpu_us, without.cpu_us))),
    }


def figures(service: Service) -> dict[str, Any]:
    """One service's requests a second, latencies and failures."""
    loads = service.loads
    return {
        "per_second": asdict(Spread.of([load.per_second for load in loads])),
        "p50_ms": asdict(Spread.of([load.p50_ms for load in loads])),
        "p99_ms": asdict(Spread.of([load.p99_ms for load in loads])),
        "cpu_us_per_request": asdict(Spread.of(service.cpu_us)),
        "failures": sum(load.failures for load in loads),
        "recorded": service.recorded(),
        "runs": [asdict(load) for load in loads],
    }


def show(found: dict[str, Any], agent: bool) -> None:
    """Print both services' figures and the ratio of the pairs."""
    columns = ("service", "req/s", "lowest … highest", "p50 ms", "p99 ms", "CPU µs", "failed")
    rows = map(row, found["services"].items())
    table("Throughput, medians over the runs", (*columns, "recorded"), rows)
    pairs = " ".join(f"{ratio:.1%}" for ratio in found["ratios"])
    label = "with by without" if agent else "second by first, both bare"
    console.print(f"{label}, pair by pair: {pairs}")
    console.print(f"median {found['ratio']['median']:.1%}, {spread(found)}")
    console.print(f"CPU time a request, same pairs: median {found['cpu_ratio']['median']:.1%}\n")


def row(item: tuple[str, dict[str, Any]]) -> list[str]:
    """One service's line."""
    name, figures = item
    rate, recorded = figures["per_second"], figures["recorded"]
    return [
        name,
        f"{rate['median']:,.0f}",
        f"{rate['low']:,.0f} … {rate['high']:,.0f}",
        f"{figures['p50_ms']['median']:.2f}",
        f"{figures['p99_ms']['median']:.2f}",
        f"{figures['cpu_us_per_request']['median']:.0f}",
        str(figures["failures"]),
        "" if recorded is None else f"{recorded:.1%}",
    ]


def spread(found: dict[str, Any]) -> str:
    """How far the pairs' ratios lie apart."""
    ratio, (low, high) = found["ratio"], found["ratio_median_95"]
    quartiles = f"quartiles {ratio['q1']:.1%} … {ratio['q3']:.1%}"
    return f"{quartiles}, 95 % sure {low:.1%} … {high:.1%}"


def parse() -> argparse.Namespace:
    """Read the command line; `agent` says whether there is one to measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=20, help="runs of each service")
    parser.add_argument("--seconds", type=int, default=2, help="length of a run")
    parser.add_argument("--warm", type=int, default=2, help="seconds of load before the first run")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--control", action="store_true", help="both services bare: what the machine's noise is"
    )
    parser.add_argument("--json", type=Path, help="write the result to this file as well")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 on a broken promise")
    options = parser.parse_args()
    options.agent = not options.control and agent_exists()
    return options


def agent_exists() -> bool:
    """Whether the agent can be imported; says so when it can't, since both runs are bare then."""
    try:
        from loopscope import Loopscope
    except UNUSABLE as missing:
        console.print(f"loopscope is not installed, both services are bare: {missing}\n")
        return False
    return callable(Loopscope)


if __name__ == "__main__":
    sys.exit(main())
