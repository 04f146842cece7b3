"""Draws the pools: one line each, the one most waited for first. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from demo_app.histogram import Estimate
from demo_app.pools import PoolFigures
from demo_app.table import milliseconds

_CAPTION = (
    "In use and waiting: how many on average. The p95 of waits in ms. Not got: timed out, turned\n"
    "away, cancelled. Leaked: not given back by requests that are over."
)
_NUMBERS = (
    ("in\nuse", 4),
    ("\nof", 4),
    ("\nshare", 6),
    ("\nwaiting", 7),
    ("wait\np95", 6),
    ("\nuses/s", 6),
    ("\nmade", 5),
    ("not\ngot", 4),
    ("\nleaked", 6),
)
_NAME_WIDTH = 41
_KIND_WIDTH = 11
_MOST_POOLS = 8
_NOTHING = Text("·", style="dim")
_FULL = 0.8


def pools_table(pools: Sequence[PoolFigures]) -> RenderableType:
    """How much of each pool was in use, who waited, what was made and what was lost."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, header_style="bold")
    table.add_column("\npool", no_wrap=True, max_width=_NAME_WIDTH)
    for heading, width in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    for pool in pools[:_MOST_POOLS]:
        table.add_row(*_cells(pool))
    return Group(table, Text(_CAPTION, "dim"))


def _cells(pool: PoolFigures) -> Sequence[Text | str]:
    return (
        _named(*pool.id),
        _mean(pool.in_use),
        _NOTHING if pool.capacity is None else f"{pool.capacity:g}",
        _share(pool.share),
        _mean(pool.waiting),
        _p95(pool.wait.quantile(0.95)),
        f"{pool.rate:.1f}",
        _count(pool.made, ""),
        _count(pool.not_obtained, "red"),
        _count(pool.leaked, "red"),
    )


def _named(name: str, kind: str) -> Text:
    """Kind and name; a long name on a line of its own."""
    if len(name) <= _NAME_WIDTH - _KIND_WIDTH and len(kind) < _KIND_WIDTH:
        return Text.assemble((f"{kind:<{_KIND_WIDTH}}", "cyan"), name)
    return Text.assemble((kind, "cyan"), f"\n  {end_of(name, _NAME_WIDTH - 2)}")


def end_of(name: str, width: int) -> str:
    """The end of a name, which tells it from others; whole words of a path where these fit."""
    rest, cut = name, name
    while len(cut) > width and "/" in rest:
        rest = rest.partition("/")[2]
        cut = f"…/{rest}"
    return cut if len(cut) <= width else f"…{cut[1 - width :]}"


def _mean(number: float) -> Text | str:
    return f"{number:.1f}" if number >= 0.05 else Text("<0.1", "dim") if number else _NOTHING


def _share(share: float | None) -> Text | str:
    return _NOTHING if share is None else Text(f"{share:.0%}", "bold" if share >= _FULL else "")


def _p95(estimate: Estimate) -> Text | str:
    if math.isnan(estimate.value):
        return _NOTHING
    if estimate.below is not None:
        return Text(f"<{milliseconds(estimate.below)}", "dim")
    return f"{'>' if estimate.above else ''}{milliseconds(estimate.value)}"


def _count(count: int, style: str) -> Text | str:
    return Text(f"{count:,}", style) if count else _NOTHING
