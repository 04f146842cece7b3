"""What became of requests' seconds: phases that add up, awaits, and what a gather would save."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import cast

import pytest
from rich.console import Console

from demo_app import accounts, figures
from demo_app.accounts_table import awaits_table, phases_table
from demo_app.load import Load, Plan
from demo_app.scenarios import Endpoint
from demo_app.scrape import Scrape, Window, between, parse
from demo_app.screen import results
from demo_app.seen import Seen
from demo_app.stack import Stack
from demo_app.verdict import conservation
from loopscope.core.phases import AWAIT_OTHER, LOOP_RUN, PHASES
from tests.demo_app.test_report import (
    DURATION,
    EVENTS,
    ORDERS,
    REPORT,
    SOCKET,
    histogram,
    http,
    line,
    phase,
)


def awaited(endpoint: Endpoint, callee: str, seconds: float, count: int) -> str:
    """Exposition lines of one line's waits for ``callee``."""
    labels = f'http_route="{endpoint.route}",site="app/shop.py:7 {callee}s",callee="{callee}"'
    return (
        f"loopscope_await_seconds_total{{{labels}}} {seconds}\n"
        f"loopscope_await_count_total{{{labels}}} {count}"
    )


SERVED = (
    histogram(DURATION, http(REPORT, http_response_status_code="200"), 4.0, b1_0=10),
    histogram(DURATION, http(ORDERS, http_response_status_code="201"), 2.0, b1_0=20),
    histogram("loopscope_stream_duration_seconds", http(EVENTS), 9.0, b1_0=3),
    histogram("loopscope_websocket_duration_seconds", f'http_route="{SOCKET.route}"', 5.0, b1_0=2),
)
PHASED = (
    phase(REPORT, "loop_run", 1.0),
    phase(REPORT, "loop_wait", 0.01),
    phase(REPORT, "await_other", 2.99),
    phase(ORDERS, "thread_wait", 2.0),
    phase(ORDERS, "background", 7.0),
    phase(EVENTS, "await_other", 9.0),
)


COUNTS = {REPORT: 10, ORDERS: 20, EVENTS: 3, SOCKET: 2}


def read(*more: str, phases: tuple[str, ...] = PHASED) -> tuple[Window, figures.Figures]:
    window = between(Scrape(0.0, {}), parse("\n".join([*SERVED, *phases, *more, ""]), at=10.0))
    return window, figures.read(window)


def drawn(renderable: object) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=98, highlight=False).print(renderable)
    return out.getvalue().splitlines()


def test_every_phase_of_the_agent_is_known() -> None:
    """What the agent may publish as part of a duration has a name here, and nothing else does."""
    assert {each.name for each in accounts.PHASES} == {LOOP_RUN, *PHASES, AWAIT_OTHER}


def test_phases_that_make_up_the_duration_are_said_to() -> None:
    """Streams included, background and WebSockets not."""
    agreed, said = conservation(read()[1])
    assert agreed
    assert said == [
        "Phases add up to the duration on each of 3 routes: 15.00 s of requests, 15.00 s in phases."
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        (phase(ORDERS, "loop_run", 0.1),),
        (phase(ORDERS, "loop_run", 0.1), phase(ORDERS, "await_other", -0.1)),
    ],
    ids=["too much", "counted twice"],
)
def test_phases_that_do_not_are_named(wrong: tuple[str, ...]) -> None:
    """More than 1 % and 0.1 ms a request is too much, also where a negative rest hides it."""
    agreed, (said, route) = conservation(read(*wrong)[1])
    assert not agreed
    assert "NOT ADD UP to the duration on 1 of 3 routes" in said
    assert route == "POST /api/orders: 2.100 s in phases, 2.000 s of 20 requests."


def test_a_small_difference_is_none() -> None:
    """Less than 1 %, or less than a tenth of a millisecond a request, is how clocks are."""
    assert conservation(read(phase(ORDERS, "loop_run", 0.019))[1])[0]
    assert not conservation(read(phase(ORDERS, "loop_run", 0.021))[1])[0]


def test_only_phases_that_occur_have_a_column() -> None:
    """Each route's row has the mean and the shares."""
    lines = drawn(phases_table(read()[1]))
    assert lines[0].split() == ["loop", "loop", "thread", "other"]
    assert line(lines, REPORT.route).split() == [
        "GET",
        REPORT.route,
        "400",
        "25%",
        "<1%",
        "·",
        "75%",
    ]
    assert line(lines, "POST").split()[2:] == ["100", "·", "·", "100%", "·"]
    assert not any(SOCKET.route in each for each in lines)


def test_awaits_are_told_with_their_share_of_the_route() -> None:
    """Longest first; what streams are waiting for is what they are for."""
    found = accounts.awaits(
        *read(
            awaited(REPORT, "fetch", 3.0, 20),
            awaited(ORDERS, "post", 4.0, 40),
            awaited(EVENTS, "get", 8.0, 30),
        )
    )
    assert [(each.callee, each.waits, each.share) for each in found] == [
        ("post", 40, 2.0),
        ("fetch", 20, 0.75),
    ]
    first, second = (line(drawn(awaits_table(found)), callee) for callee in ("post in", "fetchs"))
    assert first.split() == ["4.00", "200%", "40", "post", "in", "/api/orders"]
    assert second.split() == ["app/shop.py:7", "fetchs"]


def test_what_a_gather_would_save_is_told_a_request() -> None:
    """Half a second over ten requests is 50 ms each, at most."""
    sequence = {
        "route": REPORT.route,
        "location": "app/shop.py ask",
        "sites": ["app/shop.py:7 ask", "app/shop.py:8 ask"],
        "requests": 10,
        "saved_at_most_s": 0.5,
    }
    (said,) = accounts.savings([sequence], read()[1])
    assert said.startswith("app/shop.py ask (/api/reports/sales) awaits one thing after the other")
    assert "at 2 lines, in 10 of 10 requests" in said
    assert said.endswith("save 50 ms a request at most.")


def test_bounds_and_lost_tasks_are_told_only_if_there_are_any() -> None:
    """Nothing to say is nothing said."""
    window, found = read()
    assert [*accounts.bounds(window, found), *accounts.outliving(window)] == []
    bound = f"loopscope_request_loop_wait_estimated_seconds_total{{{http(REPORT)}}} 0.01"
    outliving = f"loopscope_request_tasks_outliving_total{{{http(ORDERS)}}} 3"
    window, found = read(bound, outliving)
    (said,) = accounts.bounds(window, found)
    assert said.startswith("Of 0.01 s loop wait, 0.01 s are an upper bound")
    (said,) = accounts.outliving(window)
    assert said == "POST /api/orders: 3 tasks outlived the request that made them."


@pytest.mark.parametrize(
    ("sent", "more", "agreed"),
    [
        (COUNTS, (), True),
        ({**COUNTS, ORDERS: 21}, (), False),
        (COUNTS, (phase(ORDERS, "loop_run", 1.0),), False),
    ],
    ids=["all agrees", "other counts", "other phases"],
)
def test_the_report_tells_whether_figures_may_be_believed(
    sent: dict[Endpoint, int], more: tuple[str, ...], agreed: bool
) -> None:
    """Which is the exit status of the demonstration."""
    load = Load("http://127.0.0.1:1", Plan(1.0, 1, 1.0))
    load.tally.answers.update({(endpoint, 200): count for endpoint, count in sent.items()})
    out = Console(file=io.StringIO(), width=100)
    running = cast("Stack", SimpleNamespace(admin_url="http://127.0.0.1:9464"))
    assert results(out, running, load, Seen(*read(*more), stalls=())) is agreed
