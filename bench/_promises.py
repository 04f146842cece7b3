"""What loopscope promises about its cost, held against what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from _table import Verdict

REQUEST_US = 5.0
INSTRUMENTATOR_SHARE = 1 / 8
CHUNK_US = 0.3
ROUTES_TOLERANCE = 0.01
"""Of the bare request: about as far as two equal processes lie apart.

Starlette's own search grows with the routes, so a percent of it is some nanoseconds a route; an
agent that walked the routes would need fifty or more.
"""
THROUGHPUT_SHARE = 0.98
SCRAPE_DELAY_MS = 10.0

Delays = Mapping[str, float]
"""What scrape.py says of one kind of spell, in milliseconds."""

Results = Sequence[dict[str, Any]]
"""Workloads as overhead.py writes them to JSON."""


def overhead_verdicts(results: Results) -> list[Verdict]:
    """The promises about single requests and chunks."""
    requests = [result for result in results if result["unit"] == "request"]
    gets = [result for result in results if _number_of_routes(result) is not None]
    gets.sort(key=lambda result: _number_of_routes(result) or 0)
    return [
        *(_per_request(result) for result in requests),
        *(_against_instrumentator(result) for result in requests),
        *(_routes(fewer, more) for fewer, more in pairwise(gets)),
        *(_per_chunk(result) for result in results if result["unit"] == "chunk"),
    ]


def throughput_verdict(ratio: float, spread: str) -> Verdict:
    """`ratio`: requests per second with the agent by requests per second without."""
    promise = f"throughput with the agent at least {THROUGHPUT_SHARE:.0%} of without"
    return Verdict(promise, f"{ratio:.1%} ({spread})", ratio >= THROUGHPUT_SHARE)


def scrape_verdict(title: str, scraped: Delays, quiet: Delays) -> Verdict:
    """Judge the loop's delays while scraped; undecided where quiet spells were as bad.

    A busy machine delays any loop now and then. So a worst case above the limit counts as the
    scrape's only if quiet spells stay below it, or if the usual scrape is above it too.
    """
    promise = f"{title}: a scrape delays the loop by less than {SCRAPE_DELAY_MS:g} ms at the worst"
    worst, usual = scraped["worst_ms"], scraped["usual_worst_ms"]
    measured = f"{worst:.1f} ms, usually {usual:.1f} (quiet spells: {quiet['worst_ms']:.1f} ms)"
    if usual < SCRAPE_DELAY_MS <= min(worst, quiet["worst_ms"]):
        return Verdict(promise, measured + ", the machine is too busy to tell", None)
    return Verdict(promise, measured, worst < SCRAPE_DELAY_MS)


def _number_of_routes(result: dict[str, Any]) -> int | None:
    kind, _, count = result["workload"].partition("-")
    return int(count) if kind == "get" and count.isdigit() else None


def _added(result: dict[str, Any], contender: str) -> float | None:
    figures = result["contenders"].get(contender)
    return None if figures is None else float(figures["added_us"]["median"])


def _ours(result: dict[str, Any]) -> str:
    """The typical figure, where its median surely lies, and the mean, which holds everything."""
    figures = result["contenders"]["loopscope"]
    low, high = figures["added_median_95_us"]
    mean = figures["mean_added_us"]["median"]
    typical = figures["added_us"]["median"]
    return f"{typical:.2f} µs (95 % sure: {low:.2f} … {high:.2f}; mean {mean:.2f})"


def _per_request(result: dict[str, Any]) -> Verdict:
    promise = f"{result['workload']}: at most {REQUEST_US:g} µs a request on top of bare"
    added = _added(result, "loopscope")
    if added is None:
        return Verdict(promise, "", None)
    return Verdict(promise, _ours(result), added <= REQUEST_US)


def _against_instrumentator(result: dict[str, Any]) -> Verdict:
    promise = f"{result['workload']}: at most 1/8 of prometheus-fastapi-instrumentator"
    ours, theirs = _added(result, "loopscope"), _added(result, "instrumentator")
    if ours is None or theirs is None:
        return Verdict(promise, "", None)
    share = ours / theirs
    measured = f"1/{theirs / ours:.1f} ({ours:.2f} by {theirs:.2f} µs)"
    return Verdict(promise, measured, share <= INSTRUMENTATOR_SHARE)


def _routes(fewer: dict[str, Any], more: dict[str, Any]) -> Verdict:
    promise = f"{fewer['workload']} to {more['workload']}: unchanged with more routes"
    before, after = _added(fewer, "loopscope"), _added(more, "loopscope")
    if before is None or after is None:
        return Verdict(promise, "", None)
    tolerance = ROUTES_TOLERANCE * more["contenders"]["loopscope"]["bare_us"]["median"]
    measured = f"{after - before:+.2f} µs (1 % of the bare request: {tolerance:.2f} µs)"
    return Verdict(promise, measured, after - before <= tolerance)


def _per_chunk(result: dict[str, Any]) -> Verdict:
    promise = f"{result['workload']}: at most {CHUNK_US:g} µs a streamed chunk"
    added = _added(result, "loopscope")
    if added is None:
        return Verdict(promise, "", None)
    return Verdict(promise, _ours(result), added <= CHUNK_US)
