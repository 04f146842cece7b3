"""Draws the figures of a run as one SVG file. Pure.

The picture is a column of panels, each a function that is given the figures and draws itself from
the top of the space left; to show more, add one to ``_PANELS``. What requests spend their time on
follows ``accounts.PHASES``: phases in which no request was are neither drawn nor explained.

One set of colours has to do on white and on dark: a picture in a page is not told what the page
looks like. So there is no background, the text is of a grey that stands 4:1 off both, and fonts are
whichever the reader has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from heapq import nlargest
from html import escape
from itertools import accumulate
from typing import Any, NamedTuple

from demo_app import pools
from demo_app.accounts import PHASES, Awaited, awaits, in_use
from demo_app.figures import Kind, RouteFigures
from demo_app.pools import PoolFigures
from demo_app.pools_table import end_of
from demo_app.scenarios import UNMATCHED
from demo_app.seen import Seen
from demo_app.table import milliseconds

WIDTH = 840
_LEFT = 300
"""Where bars begin; what they are of stands left of it."""
_INDENT = 14
"""Where the line below a bar begins, which may be long."""
_RIGHT = WIDTH - 140
_ROW = 24
_BAR = 14
_MOST_ROUTES = 9
_MOST_PLACES = 3
_LABEL = 40
"""Characters there are room for left of a bar."""

_INK = "#6e7781"
_SANS = "ui-sans-serif, system-ui, sans-serif"
_MONO = "ui-monospace, Menlo, Consolas, monospace"


COLOURS = {
    "loop_run": "#d9822b",
    "loop_wait": "#c9443e",
    "pool_wait": "#b0599f",
    "thread_wait": "#8f6fc9",
    "thread_run": "#3f9c96",
    "client_upload": "#9a8f3c",
    "client_download": "#6ea24a",
    "await_other": "#5b8db8",
}
"""By phase."""
_STALL = COLOURS["loop_wait"]
_IDLE = "#8b949e"


class Hue(NamedTuple):
    """What a colour means."""

    words: str
    colour: str


class Bar(NamedTuple):
    """One row: what it is of, its parts in the order drawn, and what stands behind it."""

    label: str
    parts: Sequence[tuple[float, str]]
    remark: str
    below: str = ""


Panel = Callable[[Seen], tuple[str, Sequence[Bar], Sequence[Hue]]]
"""A heading, its bars, and what their colours mean."""


def draw(seen: Seen) -> str:
    """The whole picture, as the text of an SVG file."""
    drawn: list[str] = []
    height = 8.0
    for panel in _PANELS:
        heading, bars, legend = panel(seen)
        if bars:
            body, used = _panel(heading, bars, legend)
            drawn.append(f'<g transform="translate(0 {height:g})">\n{body}\n</g>')
            height += used
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" '
        f'width="{WIDTH}" height="{height:g}" role="img" fill="{_INK}" '
        f'font-family="{_SANS}" font-size="12">\n'
        "<title>What loopscope saw of one run of its demonstration</title>\n"
        + "\n".join(drawn)
        + "\n</svg>\n"
    )


def _time_by_route(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Hue]]:
    routes = [r for r in seen.figures.routes if r.kind is Kind.REQUEST and r.duration.total]
    routes = nlargest(_MOST_ROUTES, routes, key=lambda route: route.spent_s)
    routes.sort(key=lambda route: route.duration.mean, reverse=True)
    bars = [_route_bar(route) for route in routes]
    heading = (
        "Where the time of a request goes, and how long one takes on average "
        f"({seen.figures.requests:,} requests in {seen.figures.seconds:.0f} s)"
    )
    legend = [Hue(phase.words, COLOURS[phase.name]) for phase in in_use(routes)]
    return heading, bars, legend


def _route_bar(route: RouteFigures) -> Bar:
    method, path = route.endpoint
    return Bar(
        f"{method} {'(no route matched)' if path == UNMATCHED else path}",
        [
            (route.phases.get(phase.name, 0.0) / route.spent_s, COLOURS[phase.name])
            for phase in PHASES
        ],
        f"{milliseconds(route.duration.mean)} ms, {route.rate:.1f}/s",
    )


def _awaits(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Hue]]:
    bars = [_await_bar(each) for each in awaits(seen.window, seen.figures)[:_MOST_PLACES]]
    return "What requests awaited for longest, and for how long in all", bars, ()


def _await_bar(each: Awaited) -> Bar:
    """The route that did it, and below it the line and what it called."""
    where = f" at {each.site}" if each.site else ""
    return Bar(
        each.route,
        [(each.seconds, COLOURS["await_other"])],
        f"{each.waits:,} x, {each.seconds:.2f} s",
        f"{each.callee}{where}; {each.share:.0%} of the route's time",
    )


def _stalls(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Hue]]:
    bars = [_stall_bar(group) for group in seen.stalls[:_MOST_PLACES]]
    return "What held the event loop, and for how long in all", bars, ()


def _stall_bar(group: Mapping[str, Any]) -> Bar:
    """The routes that did it, and below them the line."""
    cause = str(group["cause"]).replace("_", " ")
    location = str(group["location"])
    lost = f"{group['lost_request_seconds']:.1f} request-seconds lost"
    return Bar(
        ", ".join(group["routes"]) or "(no request)",
        [(float(group["seconds"]), _STALL)],
        f"{group['stalls']:,} x, {group['seconds']:.2f} s",
        f"{cause} at {location}; {lost}" if location else f"{cause}; {lost}",
    )


def _loop(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Hue]]:
    states = seen.window.sums("asyncio_eventloop_time_seconds_total", "state")
    busy, idle = states.get(("busy",), 0.0), states.get(("idle",), 0.0)
    if not busy + idle:
        return "", (), ()
    delay = seen.window.histograms("asyncio_eventloop_delay_seconds").get(())
    late = f"; delay at p99: {milliseconds(delay.quantile(0.99).value)} ms" if delay else ""
    share = busy / (busy + idle)
    bar = Bar("busy", [(busy, COLOURS["loop_run"]), (idle, _IDLE + "40")], f"{share:.0%}")
    return f"How busy the event loop was{late}", (bar,), ()


def _pools(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Hue]]:
    limited = [pool for pool in pools.read(seen.window, seen.pools) if pool.capacity]
    bars = [_pool_bar(pool) for pool in limited[:_MOST_PLACES]]
    return "How full pools were on average, the one most waited for first", bars, ()


def _pool_bar(pool: PoolFigures) -> Bar:
    """How much of it was in use; and below it how many waited, and what was lost."""
    share = min(1.0, pool.share or 0.0)
    lost = f"; {pool.leaked} not given back" if pool.leaked else ""
    return Bar(
        end_of(pool.id.pool, _LABEL),
        [(share, COLOURS["pool_wait"]), (1.0 - share, _IDLE + "40")],
        f"{pool.in_use:.1f} of {pool.capacity:g}",
        f"{pool.id.kind}; {pool.waiting:.1f} waiting{lost}",
    )


_PANELS: tuple[Panel, ...] = (_time_by_route, _awaits, _pools, _stalls, _loop)
"""From top to bottom."""


def _panel(heading: str, bars: Sequence[Bar], legend: Sequence[Hue]) -> tuple[str, float]:
    """What a panel looks like, and how high it is."""
    widest = max(sum(length for length, _ in bar.parts) for bar in bars)
    scale = (_RIGHT - _LEFT) / widest if widest else 0.0
    drawn = [_text(0, 14, heading, 'font-weight="600" font-size="13"')]
    y = 26.0
    if legend:
        drawn.extend(_legend(legend, y))
        y += _ROW
    for bar in bars:
        drawn.extend(_drawn(bar, y, scale))
        y += _ROW + (14 if bar.below else 0)
    return "\n".join(drawn), y + 18


def _legend(legend: Sequence[Hue], y: float) -> Iterator[str]:
    x = 0.0  # all phases there are need the whole width
    for hue in legend:
        yield _rectangle(x, y + 2, 10, 10, hue.colour)
        yield _text(x + 15, y + 11, hue.words, 'font-size="11"')
        x += 15 + 6.1 * len(hue.words) + 16


def _drawn(bar: Bar, y: float, scale: float) -> Iterator[str]:
    yield _text(0, y + 11, bar.label, f'font-family="{_MONO}" font-size="11.5"')
    lengths = [length * scale for length, _ in bar.parts]
    ends = list(accumulate(lengths))
    for end, length, (_, colour) in zip(ends, lengths, bar.parts, strict=True):
        if length >= 0.1:
            yield _rectangle(_LEFT + end - length, y, length, _BAR, colour)
    yield _text(_LEFT + ends[-1] + 8, y + 11, bar.remark)
    if bar.below:
        yield _text(_INDENT, y + _BAR + 13, bar.below, 'font-size="11"')


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill="{colour}"/>'


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" {more}>{escape(words)}</text>'.replace(" >", ">")
