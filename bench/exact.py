"""Are the totals exact? Of four workers under load, recycled all the time, two killed on the way.

gunicorn, four uvicorn workers and `--max-requests`; a generator that knows of every request whether
it was answered; and a witness in the service that notes every request before Loopscope sees it and
after it has been recorded. At the end each total of `/metrics` is compared with what it has to be,
to the request and to the byte, first with workers killed (`kill -9`) while they have nothing in
flight, then in full flight. What a worker had in hand when it was killed may be counted or not, and
is the only thing that may.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from _exact_books import Line, compare, read, shrunk
from _exact_kinds import COUNT, LEFT, Sample
from _exact_load import Load, Tally
from _exact_witness import seen
from _net import fetch, free_port, total
from _pipe import HERE, clean_environment
from _table import Verdict, broken, console, describe, machine, save, table, verdicts

PACKAGES = ("loopscope", "gunicorn", "uvicorn", "uvicorn-worker", "starlette")
WORKERS = 4
_PATIENCE = 30.0
_SETTLED = 2.5
"""Seconds after which workers have written what they write about once a second."""
_UNCOUNTED = "/ready"


@dataclass
class Server:
    """A running server: its master, its ports, its log, and what its witness writes."""

    process: psutil.Process
    port: int
    metrics: str
    log: Path
    witness: Path

    @property
    def booted(self) -> int:
        """Workers that were ever started."""
        return len(re.findall("Booting worker with pid", self.log.read_text()))

    def victims(self, *, speaking: bool) -> list[psutil.Process]:
        """The worker that answers for all, or those that do not, the oldest first."""
        admin = int(self.metrics.split(":")[2].split("/")[0])
        return [
            worker
            for worker in sorted(self.process.children(), key=lambda worker: worker.pid)
            if (admin in _listening(worker)) == speaking
        ]


@dataclass
class Scrapes:
    """What readers got while all of it went on."""

    made: int = 0
    failed: int = 0
    """While the port was passed on, for one."""
    shrunk: list[Sample] = field(default_factory=list)
    latest: Counter[Sample] = field(default_factory=Counter)


@dataclass
class Result:
    """One run."""

    tally: Tally
    scrapes: Scrapes
    lines: list[Line]
    called: set[int]
    returned: set[int]
    seconds: float
    workers: dict[str, float]

    @property
    def unknowable(self) -> set[int]:
        """Requests that were in the hands of a worker when it was killed."""
        return self.called - self.returned

    @property
    def by_the_generator(self) -> tuple[int, float, int]:
        """What the generator alone can tell of requests whose client stayed.

        The answers it got, but for those nobody can know of; what was counted; what it asked for.
        """
        counted = sum(
            line.published
            for line in self.lines
            if line.sample[0] == COUNT and ("http_route", LEFT.route) not in line.sample[1]
        )
        answered = len(self.tally.answered - self.unknowable)
        return answered, counted, len(self.tally.answered) + len(self.tally.cut)


def main() -> int:
    """Run, print, save; the exit code says "not exact" only with --enforce."""
    options = _options()
    where = machine(PACKAGES)
    describe(where)
    found: list[Verdict] = []
    kept: dict[str, Any] = {"machine": where}
    for name, idle in (("killed while idle", True), ("killed in full flight", False)):
        result = asyncio.run(_run(options, idle=idle))
        _report(name, result)
        found += _judged(name, result, options.kills, idle=idle)
        kept[name] = [
            (*line.sample, line.published, line.least, line.most) for line in result.lines
        ]
    verdicts(found)
    if options.json:
        save(options.json, kept)
    return int(options.enforce and broken(found))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--max-requests", type=int, default=4000, help="of a worker, then it goes")
    parser.add_argument("--keeping", type=int, default=16, help="customers that keep connections")
    parser.add_argument("--renewing", type=int, default=8, help="customers that do not")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 if not exact")
    return parser.parse_args()


async def _run(options: argparse.Namespace, *, idle: bool) -> Result:
    with tempfile.TemporaryDirectory() as made, _serving(Path(made), options) as server:
        load = Load(
            server.port, options.requests, keeping=options.keeping, renewing=options.renewing
        )
        scrapes = Scrapes()
        began = time.monotonic()
        scraping = asyncio.create_task(_scrape(server, scrapes))
        killing = asyncio.create_task(_kill(server, load, options, idle=idle))
        await load.run()
        seconds = time.monotonic() - began
        await killing
        await _settle(server)
        scraping.cancel()
        exposition = await asyncio.to_thread(fetch, server.metrics)
        published = read(exposition, _UNCOUNTED)
        scrapes.shrunk += shrunk(scrapes.latest, published)
        called, returned = seen(server.witness)
        lines = compare(published, returned, called - returned)
        return Result(
            load.tally, scrapes, lines, called, returned, seconds, _workers(server, exposition)
        )


@contextmanager
def _serving(home: Path, options: argparse.Namespace) -> Iterator[Server]:
    port, admin = free_port(), free_port()
    command = [sys.executable, "-m", "gunicorn", "_exact_service:app", "--chdir", str(HERE)]
    command += ["-k", "uvicorn_worker.UvicornWorker", "--workers", str(WORKERS)]
    command += ["--bind", f"127.0.0.1:{port}", "--no-control-socket"]
    command += ["--max-requests", str(options.max_requests)]
    command += ["--max-requests-jitter", str(options.max_requests // 2)]
    witness, log = home / "witness", home / "log"
    witness.mkdir()
    env = {
        **clean_environment(),
        "BENCH_SEEN": str(witness),
        "LOOPSCOPE_LISTEN": f"127.0.0.1:{admin}",
        "TMPDIR": str(home),
    }
    with log.open("wb") as said:
        process = subprocess.Popen(command, env=env, stdout=said, stderr=said)
    try:
        metrics = f"http://127.0.0.1:{admin}/metrics"
        server = Server(psutil.Process(process.pid), port, metrics, log, witness)
        for url in (f"http://127.0.0.1:{port}/ready", metrics):
            _wait_for(url, server)
        yield server
    finally:
        process.terminate()
        process.wait(_PATIENCE)


def _wait_for(url: str, server: Server) -> None:
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            fetch(url)
            return
        except OSError:
            if time.monotonic() > until:
                raise RuntimeError(f"no answer from {url}:\n{server.log.read_text()}") from None
            time.sleep(0.1)


async def _kill(server: Server, load: Load, options: argparse.Namespace, *, idle: bool) -> None:
    """Kill the worker that answers for all, then another one, and so on."""
    for number in range(options.kills):
        while load.tally.made < options.requests * (number + 1) // (options.kills + 1):
            await asyncio.sleep(0.01)
        if not idle:
            await asyncio.to_thread(_end_one, server, speaking=number % 2 == 0)
            continue
        async with load.paused():
            await _until_nothing_is_in_flight(server)
            await asyncio.to_thread(_end_one, server, speaking=number % 2 == 0)


def _end_one(server: Server, *, speaking: bool) -> None:
    """Not on the generator's loop: while that is held up, the workers run out of requests."""
    while not (victims := server.victims(speaking=speaking)):
        time.sleep(0.1)  # the port is just being passed on
    victims[0].send_signal(signal.SIGKILL)
    while victims[0].is_running():
        time.sleep(0.01)


async def _until_nothing_is_in_flight(server: Server) -> None:
    """Those whose client has left may be, when nobody waits for an answer any more.

    All that were sent have come in once nothing has changed for as long as a request takes.
    """
    before = -1
    while True:
        called, returned = seen(server.witness)
        if len(called) == len(returned) == before:
            return
        before = len(called)
        await asyncio.sleep(1.0)


async def _settle(server: Server) -> None:
    """Let the workers be done; what a killed one had in hand never is."""
    before = -1
    while (now := sum(map(len, seen(server.witness)))) != before:
        before = now
        await asyncio.sleep(_SETTLED)


async def _scrape(server: Server, scrapes: Scrapes) -> None:
    """Read the totals all the time: none may ever be less than it was."""
    while True:
        try:
            now = await asyncio.to_thread(_totals, server)
        except OSError:
            scrapes.failed += 1
        else:
            scrapes.made += 1
            scrapes.shrunk += shrunk(scrapes.latest, now)
            scrapes.latest = now
        await asyncio.sleep(0.5)


def _totals(server: Server) -> Counter[Sample]:
    return read(fetch(server.metrics), _UNCOUNTED)


def _listening(worker: psutil.Process) -> set[int]:
    try:
        connections = worker.net_connections("tcp")
    except psutil.NoSuchProcess:
        return set()
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


def _workers(server: Server, exposition: str) -> dict[str, float]:
    """What is said of workers, and what is known of them."""
    ends = "loopscope_worker_ends_total"
    by_how = {
        how: total("\n".join(x for x in exposition.split("\n") if f'how="{how}"' in x), ends)
        for how in ("killed", "closed")
    }
    return {
        "started": server.booted,
        "published": total(exposition, "loopscope_worker_starts_total"),
        "alive": total(exposition, "loopscope_workers"),
        **by_how,
    }


def _report(name: str, result: Result) -> None:
    tally = result.tally
    console.print(
        f"[bold]{name}[/]: {tally.made} requests in {result.seconds:.0f} s:"
        f" {len(tally.answered)} answered, {len(tally.cut)} cut (of which"
        f" {len(tally.cut & result.called)} had come in), {len(tally.left)} left by the client (of"
        f" which {len(tally.left & result.called)} had come in), {len(tally.wrong)} wrong;"
        f" {len(result.unknowable)} in the hands of a worker that was killed"
        f" (of which {len(result.unknowable & tally.answered)} answered)"
    )
    console.print(f"workers: {result.workers}")
    table(
        f"Totals, {name}",
        ["sample", "published", "least", "most", ""],
        [
            (_drawn(line), f"{line.published:.0f}", f"{line.least:.0f}", f"{line.most:.0f}",
             "exact" if line.is_exact and line.holds else "within" if line.holds else "WRONG")
            for line in result.lines
        ],
    )  # fmt: skip


def _drawn(line: Line) -> str:
    name, labels = line.sample
    return f"{name} {' '.join(value for _, value in labels if value)}"


def _judged(name: str, result: Result, kills: int, *, idle: bool) -> list[Verdict]:
    lines, workers, tally = result.lines, result.workers, result.tally
    right = sum(line.holds for line in lines)
    exact = sum(line.is_exact for line in lines)
    least, counted, most = result.by_the_generator
    found = [
        Verdict(
            f"{name}: what was answered ≤ what was counted ≤ what was asked for",
            f"{least} ≤ {counted:.0f} ≤ {most}",
            least == counted <= most if idle else least <= counted <= most,
        ),
        Verdict(
            f"{name}: every total is what it has to be",
            f"{right} of {len(lines)}, {exact} of them without any leeway",
            right == len(lines) and not tally.wrong,
        ),
        Verdict(
            f"{name}: every answer is counted, unless its worker was killed before it could be",
            f"{len(tally.answered & result.returned)} of {len(tally.answered)}",
            len(tally.answered - result.returned) <= len(result.unknowable),
        ),
        Verdict(
            f"{name}: no total was ever less than before",
            f"{len(result.scrapes.shrunk)} were, in {result.scrapes.made} scrapes"
            f" ({result.scrapes.failed} unanswered)",
            not result.scrapes.shrunk,
        ),
        Verdict(
            f"{name}: every start and end of a worker is counted, and how it ended",
            f"{workers['published']:.0f} started, {workers['killed']:.0f} killed,"
            f" {workers['closed']:.0f} closed,"
            f" {workers['alive']:.0f} alive, of {workers['started']:.0f} in the server's log",
            workers["killed"] == kills
            and workers["published"] == workers["started"]
            and workers["closed"] == workers["started"] - workers["alive"] - kills,
        ),
    ]
    if idle:
        found.insert(0, Verdict(
            f"{name}: nothing was in the hands of who was killed",
            f"{len(result.unknowable)} requests", not result.unknowable,
        ))  # fmt: skip
    return found


if __name__ == "__main__":
    raise SystemExit(main())
