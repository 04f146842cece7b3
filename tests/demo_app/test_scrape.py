"""Two scrapes and what grew between them."""

from __future__ import annotations

import math

import pytest

from demo_app.scrape import RestartedError, Scrape, between, parse

EARLIER = """\
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1000.5
# TYPE answers_total counter
answers_total{route="/a",status="200"} 10
answers_total{route="/a",status="500"} 1
# TYPE wait_seconds histogram
wait_seconds_bucket{route="/a",status="200",le="0.1"} 4
wait_seconds_bucket{route="/a",status="200",le="+Inf"} 5
wait_seconds_sum{route="/a",status="200"} 1.5
wait_seconds_count{route="/a",status="200"} 5
"""
LATER = """\
# TYPE process_start_time_seconds gauge
process_start_time_seconds 1000.5
# TYPE answers_total counter
answers_total{route="/a",status="200"} 30
answers_total{route="/a",status="500"} 4
answers_total{route="/b",status="200"} 7
# TYPE wait_seconds histogram
wait_seconds_bucket{route="/a",status="200",le="0.1"} 8
wait_seconds_bucket{route="/a",status="200",le="+Inf"} 10
wait_seconds_sum{route="/a",status="200"} 4.0
wait_seconds_count{route="/a",status="200"} 10
wait_seconds_bucket{route="/a",status="500",le="0.1"} 0
wait_seconds_bucket{route="/a",status="500",le="+Inf"} 2
wait_seconds_sum{route="/a",status="500"} 3.0
wait_seconds_count{route="/a",status="500"} 2
wait_seconds_bucket{route="/idle",status="200",le="0.1"} 0
wait_seconds_bucket{route="/idle",status="200",le="+Inf"} 0
wait_seconds_sum{route="/idle",status="200"} 0
wait_seconds_count{route="/idle",status="200"} 0
"""


def scrapes() -> tuple[Scrape, Scrape]:
    """The two texts above, ten seconds apart."""
    return parse(EARLIER, at=100.0), parse(LATER, at=110.0)


def test_a_counter_counts_from_the_earlier_scrape() -> None:
    """What had been counted before is not counted again; a new series started at zero."""
    window = between(*scrapes())
    assert window.seconds == 10.0
    assert window.sums("answers_total", "route", "status") == {
        ("/a", "200"): 20.0,
        ("/a", "500"): 3.0,
        ("/b", "200"): 7.0,
    }


def test_labels_not_asked_for_are_summed_away() -> None:
    """Sums keep the labels they are asked for, and no others."""
    assert between(*scrapes()).sums("answers_total", "route") == {("/a",): 23.0, ("/b",): 7.0}


def test_a_gauge_is_what_it_is_at_the_end() -> None:
    """Not by how much it grew; a gauge that is not there has no values."""
    window = between(*scrapes())
    assert window.values("process_start_time_seconds") == {(): 1000.5}
    assert window.values("unheard_of", "route") == {}


def test_a_metric_that_is_not_there_is_zero() -> None:
    """A service without a feature has no series of it, and its growth is nothing."""
    window = between(*scrapes())
    assert (window.total("unheard_of_total"), window.sums("unheard_of_total", "route")) == (0, {})


def test_histograms_merge_over_labels_not_asked_for_and_leave_out_what_was_idle() -> None:
    """Both statuses end up in one histogram of the window; a route without requests in none."""
    histograms = between(*scrapes()).histograms("wait_seconds", "route")
    assert histograms.keys() == {("/a",)}
    merged = histograms["/a",]
    assert dict(merged.cumulative) == {0.1: 4.0, math.inf: 7.0}
    assert merged.total == pytest.approx(5.5)


def test_the_difference_between_two_processes_is_refused() -> None:
    """A service restarted in between has counted from zero: its figures would be wrong."""
    earlier, _ = scrapes()
    later = parse(LATER.replace("1000.5", "2000.5"), at=110.0)
    with pytest.raises(RestartedError):
        between(earlier, later)
