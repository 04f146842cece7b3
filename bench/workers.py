"""What one worker pays to answer for all: reading, merging and rendering many workers' pages.

The pages are written by the agent's own recorders, with one request for each route, and copied: a
page's size, its kinds of series and their number are what a worker with as many routes has. The
workers are then "dead" or "alive" as this process locks their files or does not. Between scrapes
one of them counts in all its series, so that nothing rendered before will do.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import os
import resource
import shutil
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from _stats import Spread
from _table import console, describe, machine, save, table

PACKAGES = ("loopscope", "prometheus-client", "fastapi")
_MIB = 1 << 20


def main() -> int:
    """Measure, print, save."""
    options = _options()
    where = machine(PACKAGES)
    describe(where)
    with tempfile.TemporaryDirectory() as made:
        home = Path(made) / "pages"
        page = _one_page(home, options.routes)
        console.print(
            f"{options.workers} workers, {options.routes} routes: pages of"
            f" {page.stat().st_blocks * 512 / _MIB:.2f} MiB on disk\n"
        )
        _copy(page, options.workers)
        with _alive(home):
            before = _resident_mib()
            living = _scrapes(home, options.rounds)
        console.print(
            f"resident: {before:.0f} MiB before the first scrape,"
            f" {_resident_mib():.0f} after the last\n"
        )
        folded = _fold(home)
    _report({"all alive": living}, options.rounds)
    console.print(
        f"folding {folded['pages']:.0f} dead workers: {folded['wall_ms']:.0f} ms once;"
        f" at most {_peak_mib():.0f} MiB of memory in all of this, {_base:.0f} before it"
    )
    if options.json:
        save(options.json, {"machine": where, "scrape": living, "fold": folded})
    return 0


_base = 0.0
"""MiB resident before any page was read."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--routes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args()


def _one_page(home: Path, routes: int) -> Path:
    """The page of a worker that has answered on every route, and has ended."""
    global _base
    from fastapi import FastAPI

    from loopscope import Loopscope
    from loopscope.agent import stop_agent

    service = FastAPI()
    for number in range(routes):
        service.get(f"/resources-{number}/{{item}}")(_endpoint)
    app = Loopscope(service, listen="off", directory=str(home))
    asyncio.run(_ask(app, routes))
    stop_agent()
    (page,) = home.glob("*.page")
    _base = _peak_mib()
    return page


async def _endpoint(item: int) -> dict[str, int]:
    await asyncio.sleep(0)
    return {"item": item}


async def _ask(app: Any, routes: int) -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        pass

    for number in range(routes):
        path = f"/resources-{number}/7"
        scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET",
            "path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http",
            "query_string": b"", "headers": [], "client": ("127.0.0.1", 5), "server": None,
        }  # fmt: skip
        await app(scope, receive, send)
    await asyncio.sleep(1.2)  # an errand later all sources have written theirs


def _copy(page: Path, workers: int) -> None:
    for number in range(1, workers):
        shutil.copy(page, page.with_name(f"{number}-0.page"))


@contextmanager
def _alive(home: Path) -> Iterator[None]:
    """Every page locked, as by a worker that is there."""
    with ExitStack() as stack:
        for path in home.glob("*.page"):
            fcntl.flock(stack.enter_context(path.open("r+b")), fcntl.LOCK_EX)
        yield


def _scrapes(home: Path, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU for each step of a scrape, and of wall time for all of it."""
    from loopscope.core.clock import Clock
    from loopscope.core.group import Group
    from loopscope.core.merge import Family, merge
    from loopscope.exporters.prometheus import MetricsPage

    group = Group(home, Clock(), own=lambda: None)
    families: list[Family] = []
    rendered = MetricsPage(lambda: families)
    spent: dict[str, list[float]] = {"read": [], "merge": [], "render": [], "all, wall": []}
    size = 0
    for number in range(rounds + 1):
        _go_on(home)
        began = time.perf_counter()
        pages, read = _timed(group.pages)
        families, merged = _timed(lambda pages=pages: merge(pages))  # type: ignore[misc]
        body, drawn = _timed(lambda: rendered.render(""))
        wall = (time.perf_counter() - began) * 1e3
        size = sum(map(len, body[0]))
        if number:  # the first one parses every key there is
            for name, value in zip(spent, (read, merged, drawn, wall), strict=True):
                spent[name].append(value)
        else:
            console.print(f"first scrape: {wall:.0f} ms, of which reading {read:.0f} ms")
        del pages
    rows = sum(len(family.rows) for family in families)
    console.print(f"answer: {rows} series, {size / _MIB:.2f} MiB\n")
    return spent


def _go_on(home: Path) -> None:
    """Let one worker count in every series: so no row of the answer is what it was before."""
    from loopscope.core.page import PageReader, read_file

    page = min(home.glob("*.page"))
    reader = PageReader()
    reader.update(read_file(page))
    with page.open("r+b") as file:
        for slot in {series.runs[0][0] for series in reader.series}:
            file.seek(8 * slot)
            (before,) = struct.unpack("=d", file.read(8))
            file.seek(8 * slot)
            file.write(struct.pack("=d", before + 1.0))


def _timed(step: Callable[[], Any]) -> tuple[Any, float]:
    before = time.process_time()
    result = step()
    return result, (time.process_time() - before) * 1e3


def _fold(home: Path) -> dict[str, float]:
    from loopscope.core.clock import Clock
    from loopscope.core.group import Group

    began = time.perf_counter()
    pages = Group(home, Clock(), own=lambda: None).fold()
    return {"pages": pages, "wall_ms": (time.perf_counter() - began) * 1e3}


def _resident_mib() -> float:
    return psutil.Process().memory_info().rss / _MIB


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _report(kinds: dict[str, dict[str, list[float]]], rounds: int) -> None:
    for kind, spent in kinds.items():
        spreads = {name: Spread.of(values) for name, values in spent.items()}
        table(
            f"One scrape, {kind}: milliseconds of CPU, median and range of {rounds}",
            ["step", "median", "lowest", "highest"],
            [
                (name, f"{each.median:.1f}", f"{each.low:.1f}", f"{each.high:.1f}")
                for name, each in spreads.items()
            ],
        )


if __name__ == "__main__":
    os.environ["LOOPSCOPE_LISTEN"] = "off"
    raise SystemExit(main())
