"""From an exposition to the figures, the table and the sentences below it."""

from __future__ import annotations

import io
from collections import Counter

import pytest
from rich.console import Console

from demo_app import figures
from demo_app.figures import Figures, Kind
from demo_app.load import Tally
from demo_app.scenarios import UNMATCHED, Endpoint
from demo_app.scrape import Scrape, between, parse
from demo_app.table import milliseconds, routes_table
from demo_app.verdict import agreement, remarks

REPORT = Endpoint("GET", "/api/reports/sales")
ORDERS = Endpoint("POST", "/api/orders")
EVENTS = Endpoint("GET", "/api/live/orders")
SOCKET = Endpoint("WS", "/api/live/stock")
NOWHERE = Endpoint("GET", UNMATCHED)

_SECONDS = 10.0


def histogram(name: str, labels: str, total: float, **buckets: int) -> str:
    """Exposition lines of one histogram; ``b0_1=3`` is a cumulative count of 3 up to 0.1."""
    bounds = {key[1:].replace("_", "."): count for key, count in buckets.items()}
    count = max(bounds.values())
    lines = [f'{name}_bucket{{{labels},le="{bound}"}} {n}' for bound, n in bounds.items()]
    lines.append(f'{name}_bucket{{{labels},le="+Inf"}} {count}')
    return "\n".join(
        [*lines, f"{name}_sum{{{labels}}} {total}", f"{name}_count{{{labels}}} {count}"]
    )


def http(endpoint: Endpoint, **more: str) -> str:
    """The labels of an endpoint, and more."""
    labels = {"http_request_method": endpoint.method, "http_route": endpoint.route, **more}
    return ",".join(f'{name}="{value}"' for name, value in labels.items())


def phase(endpoint: Endpoint, name: str, seconds: float) -> str:
    """An exposition line of seconds spent in a phase."""
    return f"loopscope_request_phase_seconds_total{{{http(endpoint, phase=name)}}} {seconds}"


def ended(endpoint: Endpoint, outcome: str, count: int) -> str:
    """An exposition line of how many requests ended in a way."""
    return f"loopscope_request_outcomes_total{{{http(endpoint, outcome=outcome)}}} {count}"


def closed(code: str, initiator: str, count: int) -> str:
    """An exposition line of how many sockets were closed in a way."""
    labels = f'http_route="{SOCKET.route}",code="{code}",initiator="{initiator}"'
    return f"loopscope_websocket_closes_total{{{labels}}} {count}"


DURATION = "http_server_request_duration_seconds"
EXPOSITION = "\n".join(
    [
        f"# TYPE {DURATION} histogram",
        histogram(DURATION, http(REPORT, http_response_status_code="200"), 0.6, b0_005=0, b0_01=40),
        histogram(
            DURATION, http(ORDERS, http_response_status_code="201"), 0.2, b0_005=90, b0_01=90
        ),
        histogram(DURATION, http(ORDERS, http_response_status_code="409"), 0.0, b0_005=6, b0_01=6),
        histogram(DURATION, http(ORDERS, http_response_status_code="500"), 0.1, b0_005=4, b0_01=4),
        histogram(
            DURATION, http(NOWHERE, http_response_status_code="404"), 0.01, b0_005=3, b0_01=3
        ),
        "# TYPE loopscope_request_time_to_first_byte_seconds histogram",
        histogram("loopscope_request_time_to_first_byte_seconds", http(REPORT), 0.5, b0_005=40),
        "# TYPE loopscope_request_longest_step_seconds histogram",
        histogram("loopscope_request_longest_step_seconds", http(REPORT), 0.3, b0_005=0, b0_01=40),
        "# TYPE loopscope_stream_duration_seconds histogram",
        histogram("loopscope_stream_duration_seconds", http(EVENTS), 2.0, b0_1=0, b0_5=5),
        "# TYPE loopscope_websocket_duration_seconds histogram",
        histogram(
            "loopscope_websocket_duration_seconds", 'http_route="/api/live/stock"', 1.0, b1=4
        ),
        "# TYPE loopscope_websocket_closes counter",
        closed("1000", "client", 3),
        closed("1011", "error", 1),
        "# TYPE loopscope_request_phase_seconds counter",
        phase(REPORT, "loop_run", 3.0),
        phase(ORDERS, "loop_run", 0.5),
        phase(ORDERS, "background", 7.0),
        "# TYPE loopscope_request_outcomes counter",
        ended(REPORT, "ok", 40),
        ended(ORDERS, "error", 4),
        ended(EVENTS, "client_disconnected_mid_stream", 5),
        "# TYPE process_cpu_seconds counter",
        "process_cpu_seconds_total 4.2",
        "",
    ]
)
COUNTS = {REPORT: 40, ORDERS: 100, NOWHERE: 3, EVENTS: 5, SOCKET: 4}


def read(exposition: str = EXPOSITION) -> Figures:
    """The figures of a service that had counted nothing ten seconds before."""
    return figures.read(between(Scrape(0.0, {}), parse(exposition, at=_SECONDS)))


def tally(counts: dict[Endpoint, int]) -> Tally:
    """What a load generator with these answers would have written down."""
    return Tally(Counter({(endpoint, 200): count for endpoint, count in counts.items()}))


def drawn(found: Figures) -> list[str]:
    """The table as lines of a text that is no terminal, 100 columns wide."""
    out = io.StringIO()
    Console(file=out, width=100, highlight=False).print(routes_table(found))
    return out.getvalue().splitlines()


def line(lines: list[str], of: str) -> str:
    """The one line that names ``of``."""
    (found,) = [each for each in lines if of in each]
    return found


def test_the_busiest_route_on_the_loop_comes_first() -> None:
    """Routes are in the order of the time they held the event loop, whatever their rate."""
    assert [route.endpoint for route in read().routes[:2]] == [REPORT, ORDERS]


def test_the_share_of_the_loop_is_loop_time_by_wall_time() -> None:
    """3.0 s on the loop in 10 s is 30 %; time spent in the background does not count."""
    report, orders = read().routes[:2]
    assert report.loop_share == pytest.approx(0.3)
    assert orders.loop_share == pytest.approx(0.05)
    assert read().loop_share == pytest.approx(0.35)


def test_statuses_are_merged_into_one_route_and_told_apart_as_errors() -> None:
    """All statuses make the rate; 4xx and 5xx are counted on their own."""
    orders = next(route for route in read().routes if route.endpoint == ORDERS)
    assert orders.requests == 100
    assert orders.rate == pytest.approx(10.0)
    assert (orders.client_errors, orders.server_errors) == (6, 4)


def test_what_stays_open_is_no_part_of_the_latency() -> None:
    """Streams and WebSockets are counted as routes, but not among the quantiles of the whole."""
    found = read()
    assert found.by_endpoint() == COUNTS
    assert {route.kind for route in found.routes if route.endpoint in (EVENTS, SOCKET)} == {
        Kind.STREAM,
        Kind.WEBSOCKET,
    }
    assert found.latency()[1].count == COUNTS[REPORT] + COUNTS[ORDERS] + COUNTS[NOWHERE]


def test_a_route_that_streams_and_fails_before_is_one_route() -> None:
    """An event stream's refusals are requests of the same route, and its loop time counts once."""
    refused = histogram(DURATION, http(EVENTS, http_response_status_code="422"), 0.1, b0_005=2)
    both = read("\n".join([EXPOSITION, refused, phase(EVENTS, "loop_run", 1.0), ""]))
    (events,) = [route for route in both.routes if route.endpoint == EVENTS]
    assert (events.requests, events.client_errors) == (7, 2)
    assert both.loop_share == pytest.approx(0.45)


def test_a_socket_ended_by_an_exception_is_a_server_error() -> None:
    """A socket whose application raised is what a request with status 500 is."""
    socket = next(route for route in read().routes if route.endpoint == SOCKET)
    assert socket.server_errors == 1


def test_the_table_fits_a_hundred_columns_in_plain_text() -> None:
    """Without a terminal there are no control sequences, no cut-off names and no wide lines."""
    lines = drawn(read())
    assert max(map(len, lines)) <= 100
    assert not any("\x1b" in each or "…" in each for each in lines)


def test_a_row_says_rate_errors_times_and_share() -> None:
    """A quantile in the lowest bucket is drawn as a bound, one between bounds as a number."""
    orders = line(drawn(read()), "/api/orders").split()
    assert orders[:5] == ["POST", "/api/orders", "10.0", "6", "4"]
    assert orders[6:10] == ["3.0", "<5.0", "<5.0", "<5.0"]
    report = line(drawn(read()), "/api/reports/sales").split()
    assert report[5:11] == ["12.5", "15.0", "7.5", "9.8", "10.0", "30.0%"]


def test_paths_without_a_route_have_a_line_with_a_name() -> None:
    """The label of unmatched paths is drawn in words."""
    assert UNMATCHED not in "".join(drawn(read()))
    assert "no route matched" in "".join(drawn(read()))


def test_the_longest_bar_belongs_to_the_busiest_route() -> None:
    """Bars are in proportion to the loop's share; no share, no bar."""
    lines = drawn(read())
    bars = [line(lines, route).count("█") for route in ("/sales", "/api/orders", "no route")]
    assert bars[0] > bars[1] >= bars[2] == 0


def test_the_last_row_is_the_whole() -> None:
    """The total has the rate of everything and the sum of the shares."""
    total = line(drawn(read()), "total  ").split()
    assert (total[1], total[-1]) == ("15.2", "35.0%")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0004, "0.4"), (0.0123, "12.3"), (0.25, "250"), (3.25, "3,250")]
)
def test_milliseconds_have_the_digits_that_matter(seconds: float, text: str) -> None:
    """Tenths below a hundred milliseconds, whole ones above."""
    assert milliseconds(seconds) == text


def test_equal_counts_are_called_exact_agreement() -> None:
    """Only if every route's count is the same do the two sides agree."""
    agreed, sentences = agreement(tally(COUNTS), read())
    assert agreed
    assert "152 requests" in sentences[0]
    assert "agree exactly" in sentences[0]


def test_counts_that_cancel_out_do_not_agree() -> None:
    """One too many here and one too few there is a disagreement on two routes, each named."""
    agreed, (said, *routes) = agreement(tally({**COUNTS, REPORT: 41, ORDERS: 99}), read())
    assert not agreed
    assert "DISAGREE: 152 requests counted, 152 answered; they differ on 2 of 5 routes" in said
    assert routes == [
        "GET /api/reports/sales: service 40, load generator 41",
        "POST /api/orders: service 100, load generator 99",
    ]


def test_a_route_only_one_side_knows_is_a_disagreement() -> None:
    """A request the service never saw, or saw alone, is told."""
    agreed, (_, *routes) = agreement(tally({**COUNTS, Endpoint("GET", "/new"): 1}), read())
    assert (agreed, routes) == (False, ["GET /new: service 0, load generator 1"])


def test_requests_without_an_answer_are_told() -> None:
    """Whoever got no answer is in no count, and is not passed over in silence."""
    sent = tally(COUNTS)
    sent.failures["ConnectError"] += 2
    assert agreement(sent, read())[1][1] == "2 more got no answer: 2 x ConnectError."


def test_the_remarks_name_the_busiest_route_and_its_longest_step() -> None:
    """40 of 152 requests with 3.0 of 3.5 seconds on the loop, half of them 7.5 ms in one go."""
    said = next(iter(remarks(read())))
    assert said.startswith("GET /api/reports/sales: 26% of requests, 86%")
    assert said.endswith(", median hold 7.5 ms.")


def test_a_service_that_never_ran_has_no_busiest_route() -> None:
    """Without time on the loop nobody is accused."""
    idle = "\n".join(row for row in EXPOSITION.splitlines() if "loop_run" not in row) + "\n"
    assert not any("event loop" in sentence for sentence in remarks(read(idle)))
