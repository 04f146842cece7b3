"""The picture of a run: what is in it, and that it needs nothing but itself."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from demo_app import figures, picture
from demo_app.picture import PHASES, REST, Seen
from demo_app.scrape import Scrape, between, parse
from tests.demo_app.test_report import ORDERS, REPORT, histogram, http, phase

SVG = "{http://www.w3.org/2000/svg}"
STALL = {
    "location": "app/<report>.py:41 build",
    "cause": "blocking_call",
    "stalls": 3,
    "seconds": 0.6,
    "lost_request_seconds": 1.25,
    "routes": ["/api/reports/sales"],
}


def served(endpoint: Any, total: float) -> str:
    """Exposition lines of ten requests that took ``total`` seconds together."""
    labels = http(endpoint, http_response_status_code="200")
    return histogram("http_server_request_duration_seconds", labels, total, b1_0=10)


def seen(*lines: str, stalls: tuple[dict[str, Any], ...] = ()) -> Seen:
    window = between(Scrape(0.0, {}), parse("\n".join(lines) + "\n", 10.0))
    return Seen(window, figures.read(window), stalls)


def drawn(*lines: str, stalls: tuple[dict[str, Any], ...] = ()) -> ET.Element:
    return ET.fromstring(picture.draw(seen(*lines, stalls=stalls)))


def words(svg: ET.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def lengths(svg: ET.Element, colour: str) -> list[float]:
    """How long the parts of bars in a colour are; the legend has one of its own."""
    found = [r for r in svg.iter(f"{SVG}rect") if r.get("fill") == colour]
    return [float(r.get("width", "")) for r in found if r.get("width") != "10.0"]


def test_a_bar_is_as_long_as_a_request_took_and_divided_by_phase() -> None:
    """Lengths are to each other as the mean seconds are; what no phase accounts for is the rest."""
    run, rest = PHASES[0], REST
    svg = drawn(served(REPORT, 4.0), phase(REPORT, run.name, 1.0), served(ORDERS, 2.0))
    (running,) = lengths(svg, run.colour)
    assert lengths(svg, rest.colour) == pytest.approx([3 * running, 2 * running], rel=0.01)


def test_a_phase_nobody_listed_is_part_of_the_rest() -> None:
    """A bar never gets longer than the request was."""
    svg = drawn(served(REPORT, 4.0), phase(REPORT, "invented", 1.0))
    alone = drawn(served(REPORT, 4.0))
    assert lengths(svg, REST.colour) == lengths(alone, REST.colour)


def test_phases_that_are_bounds_leave_no_rest_below_zero() -> None:
    """Where stalls may account for more than the whole, there is simply nothing else."""
    svg = drawn(served(REPORT, 1.0), *(phase(REPORT, each.name, 0.8) for each in PHASES))
    assert not lengths(svg, REST.colour)


def test_a_stall_stands_there_with_its_line_and_what_it_cost() -> None:
    """Any text is text: what looks like markup does no harm."""
    svg = drawn(served(REPORT, 1.0), stalls=(STALL,))
    assert "3 x, 0.60 s" in words(svg)
    assert "blocking call at app/<report>.py:41 build; 1.2 request-seconds lost" in words(svg)


def test_what_was_not_seen_has_no_panel() -> None:
    """No stalls, no figures of the loop: one heading is left."""
    headings = [t for t in drawn(served(REPORT, 1.0)).iter(f"{SVG}text") if t.get("font-weight")]
    assert len(headings) == 1


def test_the_loop_is_shown_with_how_busy_it_was() -> None:
    """Its bar is divided as its time was."""
    name = "asyncio_eventloop_time_seconds_total"
    svg = drawn(served(REPORT, 1.0), f'{name}{{state="busy"}} 2', f'{name}{{state="idle"}} 6')
    assert "25%" in words(svg)


def test_nothing_is_fetched_and_nothing_runs() -> None:
    """A page may show it without asking: no link, style, script or font comes with it."""
    svg = drawn(served(REPORT, 1.0), stalls=(STALL,))
    tags = {element.tag.removeprefix(SVG) for element in svg.iter()}
    assert tags == {"svg", "title", "g", "rect", "text"}
    assert not [key for element in svg.iter() for key in element.attrib if "href" in key]


def test_everything_lies_within_the_picture() -> None:
    """No bar ends beyond the edge, and none below the bottom."""
    svg = drawn(served(REPORT, 4.0), served(ORDERS, 2.0), stalls=(STALL,) * 3)
    for part in svg.iter(f"{SVG}rect"):
        assert float(part.get("x", "")) + float(part.get("width", "")) <= picture.WIDTH
