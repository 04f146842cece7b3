"""Draws the figures of a run as one SVG file. Pure.

The picture is a column of panels, each a function that is given the figures and draws itself from
the top of the space left; to show more, add one to ``_PANELS``. What requests spend their time on
follows ``PHASES``: a phase the service publishes and nobody listed there is part of the rest.

One set of colours has to do on white and on dark: a picture in a page is not told what the page
looks like. So there is no background, the text is of a grey that stands 4:1 off both, and fonts are
whichever the reader has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Any, NamedTuple

from demo_app.figures import Figures, Kind, RouteFigures
from demo_app.scenarios import UNMATCHED
from demo_app.scrape import Window
from demo_app.table import milliseconds

WIDTH = 840
_LEFT = 300
"""Where bars begin; what they are of stands left of it."""
_RIGHT = WIDTH - 140
_ROW = 24
_BAR = 14
_MOST_ROUTES = 8
_MOST_PLACES = 3

_INK = "#6e7781"
_SANS = "ui-sans-serif, system-ui, sans-serif"
_MONO = "ui-monospace, Menlo, Consolas, monospace"


class Phase(NamedTuple):
    """A phase as ``loopscope_request_phase_seconds_total`` names it, in words, and its colour."""

    name: str
    words: str
    colour: str


PHASES = (
    Phase("loop_run", "running on the event loop", "#d9822b"),
    Phase("loop_wait", "held up by stalls, at most", "#c9443e"),
)
"""In the order in which they are drawn."""

REST = Phase("", "everything else it awaits", "#5b8db8")
_STALL = "#c9443e"
_IDLE = "#8b949e"


@dataclass(frozen=True)
class Seen:
    """What a run has shown: the window between two scrapes, read, and stalls by place."""

    window: Window
    figures: Figures
    stalls: Sequence[Mapping[str, Any]]


class Bar(NamedTuple):
    """One row: what it is of, its parts in the order drawn, and what stands behind it."""

    label: str
    parts: Sequence[tuple[float, str]]
    remark: str
    below: str = ""


Panel = Callable[[Seen], tuple[str, Sequence[Bar], Sequence[Phase]]]
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


def _time_by_route(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Phase]]:
    routes = [r for r in seen.figures.routes if r.kind is Kind.REQUEST and r.duration.total]
    routes.sort(key=lambda route: route.duration.total, reverse=True)
    spent = seen.window.sums(
        "loopscope_request_phase_seconds_total", "http_request_method", "http_route", "phase"
    )
    bars = [_route_bar(route, spent) for route in routes[:_MOST_ROUTES]]
    bars.sort(key=lambda bar: sum(length for length, _ in bar.parts), reverse=True)
    heading = (
        "Where the time of a request goes, in mean milliseconds "
        f"({seen.figures.requests:,} requests in {seen.figures.seconds:.0f} s)"
    )
    return heading, bars, (*PHASES, REST)


def _route_bar(route: RouteFigures, spent: Mapping[tuple[str, ...], float]) -> Bar:
    left = route.duration.total
    seconds: list[float] = []
    for phase in PHASES:  # what is a bound may say more than there was
        seconds.append(min(left, spent.get((*route.endpoint, phase.name), 0.0)))
        left -= seconds[-1]
    seconds.append(left)
    method, path = route.endpoint
    return Bar(
        f"{method} {'(no route matched)' if path == UNMATCHED else path}",
        [
            (part / route.duration.count, phase.colour)
            for part, phase in zip(seconds, (*PHASES, REST), strict=True)
        ],
        f"{milliseconds(route.duration.mean)} ms, {route.rate:.1f}/s",
    )


def _stalls(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Phase]]:
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


def _loop(seen: Seen) -> tuple[str, Sequence[Bar], Sequence[Phase]]:
    states = seen.window.sums("asyncio_eventloop_time_seconds_total", "state")
    busy, idle = states.get(("busy",), 0.0), states.get(("idle",), 0.0)
    if not busy + idle:
        return "", (), ()
    delay = seen.window.histograms("asyncio_eventloop_delay_seconds").get(())
    late = f"; delay at p99: {milliseconds(delay.quantile(0.99).value)} ms" if delay else ""
    share = busy / (busy + idle)
    bar = Bar("busy", [(busy, PHASES[0].colour), (idle, _IDLE + "40")], f"{share:.0%}")
    return f"How busy the event loop was{late}", (bar,), ()


_PANELS: tuple[Panel, ...] = (_time_by_route, _stalls, _loop)
"""From top to bottom."""


def _panel(heading: str, bars: Sequence[Bar], legend: Sequence[Phase]) -> tuple[str, float]:
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


def _legend(legend: Sequence[Phase], y: float) -> Iterator[str]:
    x = float(_LEFT)
    for phase in legend:
        yield _rectangle(x, y + 2, 10, 10, phase.colour)
        yield _text(x + 15, y + 11, phase.words, 'font-size="11"')
        x += 15 + 6.1 * len(phase.words) + 16


def _drawn(bar: Bar, y: float, scale: float) -> Iterator[str]:
    yield _text(0, y + 11, bar.label, f'font-family="{_MONO}" font-size="11.5"')
    lengths = [length * scale for length, _ in bar.parts]
    ends = list(accumulate(lengths))
    for end, length, (_, colour) in zip(ends, lengths, bar.parts, strict=True):
        if length >= 0.1:
            yield _rectangle(_LEFT + end - length, y, length, _BAR, colour)
    yield _text(_LEFT + ends[-1] + 8, y + 11, bar.remark)
    if bar.below:
        yield _text(_LEFT, y + _BAR + 13, bar.below, 'font-size="11"')


def _rectangle(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" fill="{colour}"/>'


def _text(x: float, y: float, words: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:g}" {more}>{escape(words)}</text>'.replace(" >", ">")
