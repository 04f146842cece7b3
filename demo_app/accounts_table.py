"""Draws what became of each route's seconds: shares by phase, and the longest awaits. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from demo_app.accounts import Awaited, Phase, accounted, in_use
from demo_app.figures import Figures, RouteFigures
from demo_app.table import ROUTE_WIDTH, milliseconds, named

_PHASES_CAPTION = (
    "Mean ms of a request to its last byte, and what they are made of. Loop run: its own code and\n"
    "that of its tasks. Loop wait: ready to run, while the loop ran something else."
)
_AWAITS_CAPTION = (
    "Seconds of all requests, their share of the route's, and how many waits of 1 ms or more.\n"
    "Tasks of a request wait at one time, and each wait counts: shares may be above 100%."
)
_MOST_AWAITS = 6
_DIM_BELOW = 0.005


def phases_table(figures: Figures) -> RenderableType:
    """One line a route, the slowest first: how long, and the share of each phase that occurs."""
    routes = accounted(figures)
    phases = in_use(routes)
    table = _empty()
    table.add_column("\nroute", no_wrap=True, overflow="ellipsis", max_width=ROUTE_WIDTH)
    table.add_column("\nms", justify="right", no_wrap=True, min_width=7)
    for phase in phases:
        table.add_column(phase.words.replace(" ", "\n"), justify="right", no_wrap=True, min_width=7)
    for route in routes:
        table.add_row(*_cells(route, phases))
    return Group(table, Text(_PHASES_CAPTION, "dim"))


def awaits_table(awaits: Sequence[Awaited]) -> RenderableType:
    """Two lines an await: how much of which route for what, and below it where."""
    table = _empty()
    for heading, width in (("seconds", 7), ("share", 7), ("waits", 8)):
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("  awaited", no_wrap=True, overflow="ellipsis")
    for each in awaits[:_MOST_AWAITS]:
        what = Text.assemble("  ", (each.callee, "bold"), f" in {each.route}")
        table.add_row(f"{each.seconds:.2f}", f"{each.share:.0%}", f"{each.waits:,}", what)
        table.add_row("", "", "", Text(f"    {each.site or '(no line of the shop)'}", "dim"))
    return Group(table, Text(_AWAITS_CAPTION, "dim"))


def _empty() -> Table:
    return Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False, header_style="bold")


def _cells(route: RouteFigures, phases: Sequence[Phase]) -> Sequence[Text | str]:
    mean = milliseconds(route.spent_s / route.requests)
    return (named(route), mean, *(_share(route, phase) for phase in phases))


def _share(route: RouteFigures, phase: Phase) -> Text | str:
    share = route.phases.get(phase.name, 0.0) / route.spent_s if route.spent_s else 0.0
    if share < _DIM_BELOW:
        return Text("<1%" if share else "·", style="dim")
    return Text(f"{share:.0%}", style="bold" if share >= 0.5 else "")
