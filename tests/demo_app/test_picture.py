"""The picture of a run: what is in it, and that it needs nothing but itself."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree as ET

import pytest

from demo_app import figures, picture
from demo_app.accounts import PHASES
from demo_app.picture import COLOURS
from demo_app.scrape import Scrape, between, parse
from demo_app.seen import Seen
from tests.demo_app.test_accounts import awaited
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


def spent(endpoint: Any, total: float) -> tuple[str, str]:
    """The same, all of it in one phase."""
    return served(endpoint, total), phase(endpoint, "await_other", total)


def seen(*lines: str, stalls: tuple[dict[str, Any], ...] = ()) -> Seen:
    window = between(Scrape(0.0, {}), parse("\n".join(lines) + "\n", 10.0))
    return Seen(window, figures.read(window), stalls)


def pool(name: str, in_use: float) -> tuple[str, str]:
    """Exposition lines of a pool of ten that so many of were in use."""
    labels = f'pool="{name}",kind="db.asyncpg"'
    use = f'loopscope_pool_route_use_seconds_total{{{labels},http_route="/"}}'
    return f"loopscope_pool_capacity{{{labels}}} 10", f"{use} {in_use * 10.0}"


def drawn(*lines: str, stalls: tuple[dict[str, Any], ...] = ()) -> ET.Element:
    return ET.fromstring(picture.draw(seen(*lines, stalls=stalls)))


def words(svg: ET.Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


def lengths(svg: ET.Element, colour: str) -> list[float]:
    """How long the parts of bars in a colour are; the legend has one of its own."""
    found = [r for r in svg.iter(f"{SVG}rect") if r.get("fill") == colour]
    return [float(r.get("width", "")) for r in found if r.get("width") != "10.0"]


def test_each_bar_is_divided_as_the_time_of_the_route_was() -> None:
    """All are of one length, and how long a request took stands behind them."""
    svg = drawn(
        served(REPORT, 4.0),
        phase(REPORT, "loop_run", 1.0),
        phase(REPORT, "await_other", 3.0),
        served(ORDERS, 2.0),
        phase(ORDERS, "await_other", 2.0),
    )
    (running,) = lengths(svg, COLOURS["loop_run"])
    awaited = lengths(svg, COLOURS["await_other"])
    assert awaited == pytest.approx([3 * running, 4 * running], rel=0.01)
    assert [each for each in words(svg) if " ms, " in each] == ["400 ms, 1.0/s", "200 ms, 1.0/s"]


def test_only_phases_that_occurred_are_explained() -> None:
    """The legend has no colour that is not to be seen."""
    svg = drawn(served(REPORT, 4.0), phase(REPORT, "loop_run", 4.0), phase(REPORT, "background", 9))
    assert "loop run" in words(svg)
    assert not {each.words for each in PHASES if each.name != "loop_run"} & set(words(svg))


def test_every_phase_has_a_colour_of_its_own() -> None:
    """None is left out, and no two look alike."""
    assert COLOURS.keys() == {each.name for each in PHASES}
    assert len(set(COLOURS.values())) == len(PHASES)


def test_a_stall_stands_there_with_its_line_and_what_it_cost() -> None:
    """Any text is text: what looks like markup does no harm."""
    svg = drawn(*spent(REPORT, 1.0), stalls=(STALL,))
    assert "3 x, 0.60 s" in words(svg)
    assert "blocking call at app/<report>.py:41 build; 1.2 request-seconds lost" in words(svg)


def test_an_await_stands_there_with_its_line_and_its_share() -> None:
    """The route, and what of it was waiting for what."""
    svg = drawn(*spent(REPORT, 4.0), awaited(REPORT, "fetch", 3.0, 20))
    assert "20 x, 3.00 s" in words(svg)
    assert "fetch at app/shop.py:7 fetchs; 75% of the route's time" in words(svg)


def test_what_was_not_seen_has_no_panel() -> None:
    """No awaits, no stalls, no figures of the loop: one heading is left."""
    headings = [t for t in drawn(*spent(REPORT, 1.0)).iter(f"{SVG}text") if t.get("font-weight")]
    assert len(headings) == 1


def test_the_loop_is_shown_with_how_busy_it_was() -> None:
    """Its bar is divided as its time was."""
    name = "asyncio_eventloop_time_seconds_total"
    svg = drawn(*spent(REPORT, 1.0), f'{name}{{state="busy"}} 2', f'{name}{{state="idle"}} 6')
    assert "25%" in words(svg)


def test_nothing_is_fetched_and_nothing_runs() -> None:
    """A page may show it without asking: no link, style, script or font comes with it."""
    svg = drawn(*spent(REPORT, 1.0), stalls=(STALL,))
    tags = {element.tag.removeprefix(SVG) for element in svg.iter()}
    assert tags == {"svg", "title", "g", "rect", "text"}
    assert not [key for element in svg.iter() for key in element.attrib if "href" in key]


def test_a_pool_is_as_full_as_it_was_on_average() -> None:
    """Never more than full, and its name may be cut."""
    svg = drawn(*spent(REPORT, 2.0), *pool("shop", 2.5), *pool(50 * "x" + ".example", 11.0))
    full, quarter = lengths(svg, COLOURS["pool_wait"])
    assert quarter == pytest.approx(full / 4, rel=0.01)
    assert "shop" in words(svg)
    assert any(each.startswith("…") and each.endswith(".example") for each in words(svg))


def test_everything_lies_within_the_picture() -> None:
    """No bar ends beyond the edge, and none below the bottom."""
    all_phases = (phase(REPORT, each.name, 0.5) for each in PHASES)
    svg = drawn(served(REPORT, 4.0), *all_phases, *spent(ORDERS, 2.0), stalls=(STALL,) * 3)
    for part in svg.iter(f"{SVG}rect"):
        assert float(part.get("x", "")) + float(part.get("width", "")) <= picture.WIDTH
