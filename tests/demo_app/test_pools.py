"""From an exposition to the table of pools and what is said of them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from demo_app import figures, pools
from demo_app.pools import Id, PoolFigures
from demo_app.pools_table import pools_table
from demo_app.scrape import Scrape, Window, between, parse
from tests.demo_app.test_report import DURATION, ORDERS, REPORT, histogram, http, line

SECONDS = 10.0
DATABASE = Id("shop:5432/shop", "db.asyncpg")
BARE = Id("shop:5432/shop (no pool)", "db.asyncpg")
TYPES = "\n".join(
    [
        "# TYPE loopscope_pool_capacity gauge",
        "# TYPE loopscope_pool_leaked gauge",
        "# TYPE loopscope_pool_wait_seconds histogram",
        "# TYPE loopscope_pool_route_wait_seconds counter",
        "# TYPE loopscope_pool_route_use_seconds counter",
        "# TYPE loopscope_pool_creations counter",
        "# TYPE loopscope_pool_timeouts counter",
        "# TYPE loopscope_pool_rejected counter",
        f"# TYPE {DURATION} histogram",
        histogram(DURATION, http(REPORT, http_response_status_code="200"), 4.0, b1_0=10),
        histogram(DURATION, http(ORDERS, http_response_status_code="201"), 2.0, b1_0=20),
    ]
)


def labels(of: Id, **more: str) -> str:
    """The labels of a pool, and more."""
    return ",".join(f'{name}="{value}"' for name, value in {**of._asdict(), **more}.items())


def sample(name: str, value: float, of: Id = DATABASE, **more: str) -> str:
    """An exposition line of a pool's."""
    return f"loopscope_pool_{name}{{{labels(of, **more)}}} {value}"


def made(count: int, route: str, of: Id = BARE, site: str = "app/shop.py:7 place") -> str:
    """So many connections by a line."""
    return sample("creations_total", count, of, http_route=route, site=site)


FULL = (
    sample("capacity", 10),
    sample("leaked", 0, reason="request_ended"),
    histogram("loopscope_pool_wait_seconds", labels(DATABASE), 18.0, b0_1=50, b0_5=100),
    sample("route_wait_seconds_total", 15.0, http_route=ORDERS.route),
    sample("route_wait_seconds_total", 5.0, http_route=REPORT.route),
    sample("route_use_seconds_total", 60.0, http_route=REPORT.route),
    sample("route_use_seconds_total", 20.0, http_route=ORDERS.route),
    sample("timeouts_total", 2),
    sample("rejected_total", 1),
    made(4, ORDERS.route, DATABASE),
)
IDLE = (
    sample("capacity", 5, Id("cache:6379/0", "cache.redis")),
    sample("leaked", 0, Id("cache:6379/0", "cache.redis"), reason="request_ended"),
)


def read(*lines: str, documents: Any = ()) -> tuple[Window, list[PoolFigures]]:
    window = between(Scrape(0.0, {}), parse("\n".join([TYPES, *lines, ""]), at=SECONDS))
    return window, pools.read(window, documents)


def said(*lines: str, documents: Any = ()) -> list[str]:
    window, found = read(*lines, documents=documents)
    return list(pools.remarks(found, window, figures.read(window), documents))


def drawn(found: list[PoolFigures], width: int = 98) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(pools_table(found))
    return out.getvalue().splitlines()


def document(*held: dict[str, Any], of: Id = DATABASE) -> dict[str, Any]:
    """What ``/api/pools`` says of a pool, as far as it is read."""
    return {**of._asdict(), "held": list(held)}


def use(
    age_s: float, leaked: str | None = "request_ended", site: str = "app/shop.py:9 refund"
) -> dict[str, Any]:
    """One thing of a pool that is in use."""
    return {"site": site, "route": ORDERS.route, "age_s": age_s, "leaked": leaked}


def test_seconds_in_a_second_are_how_many_there_are_on_average() -> None:
    """80 s of use in 10 s are 8 of 10 in use; 20 s of waiting are 2 who wait."""
    (pool,) = read(*FULL)[1]
    assert (pool.in_use, pool.share, pool.waiting) == (8.0, 0.8, 2.0)
    assert (pool.rate, pool.made, pool.not_obtained) == (10.0, 4, 3)


def test_what_is_still_in_use_counts_as_well() -> None:
    """From when it was taken, or from the beginning of the window."""
    (pool,) = read(*FULL, documents=[document(use(4.0), use(99.0))])[1]
    assert pool.in_use == pytest.approx(8.0 + 0.4 + 1.0)


def test_a_pool_that_nobody_used_has_no_line() -> None:
    """However many may be in use."""
    assert [pool.id for pool in read(*FULL, *IDLE)[1]] == [DATABASE]


def test_the_pool_most_waited_for_comes_first() -> None:
    """Whatever it is called, and however busy another is."""
    quiet = sample("route_use_seconds_total", 90.0, BARE, http_route=ORDERS.route)
    assert [pool.id for pool in read(quiet, *FULL)[1]] == [DATABASE, BARE]


def test_a_row_says_how_full_who_waits_and_what_was_lost() -> None:
    """Without a limit there is no share, and what did not happen is a dot."""
    leaked = sample("leaked", 2, BARE, reason="request_ended")
    lines = drawn(read(*FULL, made(20, ORDERS.route), leaked)[1])
    first = line(lines, f"{DATABASE.pool}   ").split()
    assert first[2:] == ["8.0", "10", "80%", "2.0", "460", "10.0", "4", "3", "·"]
    second = line(lines, BARE.pool).split()
    assert second[4:] == ["·", "·", "·", "·", "·", "0.0", "20", "·", "2"]


def test_the_table_fits_a_hundred_columns_whatever_pools_are_called() -> None:
    """A long name has a line of its own, of which the end is what matters."""
    long = Id("httpx app/a/rather/deep/folder/of/shop.py:7 ask_the_bank", "http.httpx")
    lines = drawn(read(*FULL, sample("timeouts_total", 7, long))[1])
    assert max(map(len, lines)) <= 98
    at = lines.index(line(lines, long.kind))
    assert lines[at].split()[-2:] == ["7", "·"]
    assert lines[at + 1].strip().startswith("…")
    assert lines[at + 1].strip().endswith("/folder/of/shop.py:7 ask_the_bank")


def test_a_busy_pool_is_told_with_who_holds_it_and_who_waits() -> None:
    """Which need not be the same route."""
    (found,) = said(*FULL)
    assert found == (
        f"{DATABASE.pool}: 8.0 of 10 in use on average; GET /api/reports/sales held 75% of it; "
        "POST /api/orders waited longest, 75% of 20.0 s."
    )


def test_a_pool_with_room_is_not_remarked_upon() -> None:
    """2 of 10 in use and nobody waiting is how it should be."""
    assert said(FULL[0], sample("route_use_seconds_total", 20.0, http_route=REPORT.route)) == []


@pytest.mark.parametrize(("count", "is_told"), [(20, True), (10, True), (9, False)])
def test_a_connection_for_every_other_request_is_told(count: int, is_told: bool) -> None:
    """With the route and the line; a pool that grows now and then is not."""
    found = said(made(count, ORDERS.route))
    assert bool(found) is is_told
    if is_told:
        each = f"{count / 20:.1f}"
        assert found == [
            f"POST /api/orders opens a connection per request ({each}) at app/shop.py:7 place."
        ]


def test_what_is_no_connection_or_no_request_is_not_told_as_one() -> None:
    """Threads are made as well, and connections before the first request."""
    assert said(made(40, ORDERS.route, Id("default executor", "threads")), made(40, "")) == []


def test_what_was_not_given_back_is_told_with_its_line() -> None:
    """What is merely in use is not."""
    documents = [document(use(3.0), use(4.0), use(0.1, leaked=None, site="app/shop.py:1 other"))]
    assert said(documents=documents) == [
        f"{DATABASE.pool}: 2 not given back, taken at app/shop.py:9 refund (/api/orders)."
    ]
