"""How much scraping /metrics delays the service's event loop, at thousands of histogram children.

A light FastAPI service runs a heartbeat on its loop; this process scrapes it the way Prometheus
does. Each scrape is followed by a quiet spell of the same length, with the same light traffic.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from _pipe import Worker
from _promises import scrape_verdict
from _scrape_server import METHODS
from _scraper import Scrape, light_traffic, request_all, scrape
from _stats import Spread, quantile
from _table import broken, console, describe, machine, save, table, verdicts

PACKAGES = ("loopscope", "prometheus-client", "fastapi", "uvicorn", "uvloop")
TITLE = "Delay of the service's event loop while quiet and while scraped, and the scrapes"
_TRAFFIC_PER_SECOND = 50.0
_FIRST_ROUTES = 20


@dataclass(frozen=True)
class Case:
    """One way of serving metrics, and whose histogram children there are."""

    key: str
    title: str
    way: str
    whose: str
    promised: bool


CASES = (
    Case("own", "loopscope, its own series", "loopscope", "own", promised=True),
    Case("user", "loopscope, the user's series", "loopscope", "user", promised=True),
    Case("thread", "start_http_server, the user's series", "in-a-thread", "user", promised=False),
    Case(
        "loop",
        "make_asgi_app on the loop, the user's series",
        "on-the-loop",
        "user",
        promised=False,
    ),
)


@dataclass
class Spells:
    """The loop's delays in each spell of one kind, in seconds, and the scrapes made."""

    delays: list[list[float]] = field(default_factory=list)
    scrapes: list[Scrape] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """The loop's delay in milliseconds: the worst, the median spell's worst, the p99."""
        worst = [max(spell) * 1e3 for spell in self.delays if spell]
        every = [delay * 1e3 for spell in self.delays for delay in spell]
        return {
            "worst_ms": max(worst),
            "usual_worst_ms": Spread.of(worst).median,
            "p99_ms": quantile(every, 0.99),
            "beats": len(every),
        }


def main() -> int:
    """Measure, print, save; the exit code says "broken promise" only with --enforce."""
    options = parse()
    where = machine(PACKAGES)
    describe(where)
    results = {}
    for case in options.cases:
        results[case.key] = measure(case, options)
    table(f"{TITLE}, in ms", COLUMNS, map(row, results.values()))
    judged = [
        scrape_verdict(case.title, found["scraped"], found["quiet"])
        for case in options.cases
        if case.promised and "scraped" in (found := results[case.key])
    ]
    verdicts(judged)
    if options.json:
        kept = [asdict(verdict) for verdict in judged]
        save(options.json, {"machine": where, "cases": results, "verdicts": kept})
    return int(options.enforce and broken(judged))


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """Run one case; JSON-ready."""
    console.print(f"{case.key}: {case.title}")
    children = options.children if case.whose == "user" else 0
    arguments = (case.way, str(children), str(options.children // len(METHODS)), options.loop)
    with Worker("_scrape_server.py", *arguments) as worker:
        server = worker.hear()
        if "missing" in server:
            return {"case": case.key, "title": case.title, "missing": server["missing"]}
        if case.whose == "own":
            grow(server, options.children)
        with light_traffic(server["service"], _TRAFFIC_PER_SECOND):
            quiet, scraped = take_turns(worker, server["metrics"], options)
    return {"case": case.key, "title": case.title, **summary(quiet, scraped)}


def grow(server: dict[str, str], children: int) -> None:
    """Make requests until the agent publishes at least that many histogram children.

    How many children a route brings is seen from the first few; the agent has some of its own.
    """
    most = children // len(METHODS)
    asked, wanted = 0, _FIRST_ROUTES
    while asked < wanted:
        request_all(server["service"], range(asked, wanted), METHODS)
        asked = wanted
        found = scrape(server["metrics"]).histogram_children
        lacking = max(0, children - found)
        wanted = min(most, asked + ceil(lacking * asked / max(1, found)))
    if lacking:
        raise RuntimeError(f"requests to {asked} routes made {found} children, not {children}")


def take_turns(worker: Worker, metrics: str, options: argparse.Namespace) -> tuple[Spells, Spells]:
    """A spell with one scrape, then a quiet spell as long as that, and so on until time is up."""
    quiet, scraped = Spells(), Spells()
    end = time.monotonic() + options.seconds
    while not scraped.scrapes or time.monotonic() < end:
        with heartbeat(worker, scraped):
            started = time.monotonic()
            scraped.scrapes.append(scrape(metrics))
            time.sleep(options.pause)
            length = time.monotonic() - started
        with heartbeat(worker, quiet):
            time.sleep(length)
    return quiet, scraped


@contextmanager
def heartbeat(worker: Worker, spells: Spells) -> Iterator[None]:
    """Keep the delays of the loop that come up in this block."""
    worker.ask(watch=True)
    yield
    spells.delays.append(worker.ask(delays=True)["delays"])


def summary(quiet: Spells, scraped: Spells) -> dict[str, Any]:
    """The JSON part of one case."""
    last = scraped.scrapes[-1]
    return {
        "quiet": quiet.summary(),
        "scraped": scraped.summary(),
        "scrapes": len(scraped.scrapes),
        "scrape_ms": asdict(Spread.of([one.seconds * 1e3 for one in scraped.scrapes])),
        "histogram_children": last.histogram_children,
        "text_bytes": len(last.text.encode()),
        "wire_bytes": last.wire_bytes,
    }


COLUMNS = (
    "case",
    "children",
    "worst: quiet",
    "scraped",
    "usual: quiet",
    "scraped",
    "p99: quiet",
    "scraped",
    "scrape",
    "longest",
    "scrapes",
    "MB",
    "gzip",
)


def row(found: dict[str, Any]) -> Sequence[str]:
    """One case's line."""
    if "missing" in found:
        return [found["case"], "not installed"]
    quiet, scraped, took = found["quiet"], found["scraped"], found["scrape_ms"]
    return [
        found["case"],
        str(found["histogram_children"]),
        f"{quiet['worst_ms']:.1f}",
        f"{scraped['worst_ms']:.1f}",
        f"{quiet['usual_worst_ms']:.1f}",
        f"{scraped['usual_worst_ms']:.1f}",
        f"{quiet['p99_ms']:.1f}",
        f"{scraped['p99_ms']:.1f}",
        f"{took['median']:.0f}",
        f"{took['high']:.0f}",
        str(found["scrapes"]),
        f"{found['text_bytes'] / 1e6:.2f}",
        f"{found['wire_bytes'] / 1e6:.2f}",
    ]


def parse() -> argparse.Namespace:
    """Read the command line; `cases` comes out as what is to be run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--children", type=int, default=3000, help="histogram children")
    parser.add_argument("--seconds", type=float, default=20.0, help="time for each case")
    parser.add_argument("--pause", type=float, default=0.1, help="seconds after a scrape")
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="uvloop")
    parser.add_argument("--only", help="comma-separated, of: " + ", ".join(c.key for c in CASES))
    parser.add_argument("--json", type=Path, help="write the result to this file as well")
    parser.add_argument("--enforce", action="store_true", help="exit with 1 on a broken promise")
    options = parser.parse_args()
    known = {case.key: case for case in CASES}
    wanted = options.only.split(",") if options.only else list(known)
    unknown = [key for key in wanted if key not in known]
    if unknown:
        parser.error(f"unknown case {', '.join(unknown)}: choose from {', '.join(known)}")
    options.cases = [known[key] for key in wanted]
    return options


if __name__ == "__main__":
    sys.exit(main())
