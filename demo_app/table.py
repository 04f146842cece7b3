"""Draws the figures: one line a route, the busiest on the event loop first. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from demo_app.figures import Figures, Kind, RouteFigures
from demo_app.histogram import Estimate, Histogram
from demo_app.scenarios import UNMATCHED

_QUANTILES = (0.5, 0.95, 0.99)
ROUTE_WIDTH = 32
_BAR_WIDTH = 8
# Headings and the least width of the columns of numbers.
_NUMBERS = (
    ("\nreq/s", 6),
    ("\n4xx", 4),
    ("\n5xx", 4),
    ("first\nbyte", 6),
    ("last\nbyte", 6),
    ("\np50", 5),
    ("\np95", 5),
    ("\np99", 5),
)
_CAPTION = (
    "Times in ms: means to the first and to the last byte; quantiles to the last, interpolated\n"
    "within histogram buckets (<5.0 lies in the lowest). SSE and WS: lifetimes, not in the total's."
)
_EIGHTHS = " ▏▎▍▌▋▊▉█"
_NOTHING = Text("·", style="dim")


def routes_table(figures: Figures) -> Table:
    """Requests with their latency in milliseconds, then what stays open with its lifetime."""
    table = _empty_table()
    widest = max((route.loop_share for route in figures.routes), default=0.0)
    for kinds in ((Kind.REQUEST,), (Kind.STREAM, Kind.WEBSOCKET)):
        for route in figures.routes:
            if route.kind in kinds:
                table.add_row(*_cells(route, widest))
        table.add_section()
    table.add_row(*_total(figures), style="bold")
    return table


def _empty_table() -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
        header_style="bold",
        caption=_CAPTION,
        caption_style="dim",
        caption_justify="left",
    )
    table.add_column("\nroute", no_wrap=True, overflow="ellipsis", max_width=ROUTE_WIDTH)
    for heading, width in _NUMBERS:
        table.add_column(heading, justify="right", no_wrap=True, min_width=width)
    table.add_column("  share of the\n  event loop", no_wrap=True, min_width=16)
    return table


def _cells(route: RouteFigures, widest: float) -> Sequence[Text | str]:
    return (
        named(route),
        _rate(route.rate),
        _count(route.client_errors, "yellow"),
        _count(route.server_errors, "red"),
        *_times(route.first_byte, route.duration),
        _share(route.loop_share, widest),
    )


def _total(figures: Figures) -> Sequence[Text | str]:
    return (
        "total",
        _rate(figures.requests / figures.seconds),
        _count(sum(route.client_errors for route in figures.routes), "yellow"),
        _count(sum(route.server_errors for route in figures.routes), "red"),
        *_times(*figures.latency()),
        f"{figures.loop_share:7.1%}",
    )


def named(route: RouteFigures) -> Text:
    """Method and path, in colours."""
    method, path = route.endpoint
    shown = {Kind.STREAM: "SSE"}.get(route.kind, method)
    text = Text(f"{shown:<5}", style="cyan")
    if path == UNMATCHED:
        return text.append("no route matched", style="italic default")
    return text.append(path, style="default")


def _rate(rate: float) -> str:
    return f"{rate:.1f}"


def _count(count: int, style: str) -> Text:
    return Text(str(count), style=style) if count else _NOTHING


def _times(first_byte: Histogram, duration: Histogram) -> Sequence[Text | str]:
    quantiles = (_quantile(duration.quantile(q)) for q in _QUANTILES)
    return (_mean(first_byte), _mean(duration), *quantiles)


def _mean(histogram: Histogram) -> Text | str:
    return _NOTHING if math.isnan(histogram.mean) else milliseconds(histogram.mean)


def _quantile(estimate: Estimate) -> Text | str:
    if math.isnan(estimate.value):
        return _NOTHING
    if estimate.below is not None:
        return Text(f"<{milliseconds(estimate.below)}", style="dim")
    if estimate.above:
        return Text(f">{milliseconds(estimate.value)}", style="red")
    return milliseconds(estimate.value)


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds with about three significant digits, and no unit."""
    value = seconds * 1_000
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def _share(share: float, widest: float) -> Text:
    if not share:  # not measured for this kind of route
        return Text.assemble(" " * 6, _NOTHING)
    return Text.assemble(f"{share:7.1%} ", _bar(share, widest))


def _bar(share: float, widest: float) -> Text:
    """A bar as long as the share is to the widest of the table."""
    eighths = round(share / widest * _BAR_WIDTH * 8) if widest > 0 else 0
    whole, rest = divmod(eighths, 8)
    return Text("█" * whole + (_EIGHTHS[rest] if rest else ""), style="magenta")
