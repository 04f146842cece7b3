"""Quantiles of Prometheus histograms, as ``histogram_quantile`` would answer."""

from __future__ import annotations

import math

import pytest

from demo_app.histogram import EMPTY, Histogram

# 10 values up to 0.1, 30 more up to 0.2, 10 above.
UNEVEN = Histogram({0.1: 10.0, 0.2: 40.0, math.inf: 50.0}, total=9.0)


def test_a_quantile_lies_between_the_bounds_of_its_bucket_in_proportion() -> None:
    """The median of 50 is the 25th: half way through the bucket that holds the 11th to 40th."""
    assert UNEVEN.quantile(0.5).value == pytest.approx(0.15)


def test_a_quantile_on_a_bound_is_that_bound() -> None:
    """The 40th of 50 is the last of its bucket, and so equals the bucket's upper bound."""
    assert UNEVEN.quantile(0.8).value == pytest.approx(0.2)


def test_the_lowest_bucket_starts_at_zero_and_is_told_to_be_a_bound() -> None:
    """In the lowest bucket the estimate is interpolated from zero, but only the bound is known."""
    estimate = UNEVEN.quantile(0.1)
    assert estimate.value == pytest.approx(0.05)
    assert estimate.below == 0.1


def test_beyond_the_highest_bound_only_the_bound_is_known() -> None:
    """A quantile among values above all bounds is not invented: it is the bound, marked so."""
    estimate = UNEVEN.quantile(0.99)
    assert (estimate.value, estimate.above) == (0.2, True)


def test_empty_buckets_are_stepped_over() -> None:
    """A quantile never falls into a bucket nothing was observed in."""
    gap = Histogram({0.1: 5.0, 0.2: 5.0, 0.3: 10.0, math.inf: 10.0}, total=2.0)
    assert gap.quantile(0.6).value == pytest.approx(0.22)


def test_nothing_observed_has_neither_mean_nor_quantile() -> None:
    """Without values both are not a number, rather than a zero that looks like a good one."""
    assert math.isnan(EMPTY.mean)
    assert math.isnan(EMPTY.quantile(0.5).value)


def test_the_mean_is_exact() -> None:
    """The mean comes from sum and count, not from buckets."""
    assert UNEVEN.mean == pytest.approx(0.18)


def test_merged_histograms_hold_the_values_of_both() -> None:
    """Adding two histograms adds bucket by bucket; the empty one changes nothing."""
    both = UNEVEN + UNEVEN + EMPTY
    assert (both.count, both.total) == (100.0, 18.0)
    assert both.quantile(0.5).value == UNEVEN.quantile(0.5).value


@pytest.mark.parametrize("q", [0.01, 0.25, 0.5, 0.75, 0.9])
def test_quantiles_of_many_fine_buckets_come_close_to_the_values(q: float) -> None:
    """With a bucket for every value from 1 to 1000 the estimate is off by one at most."""
    fine = Histogram({**{float(n): float(n) for n in range(1, 1001)}, math.inf: 1000.0}, 500_500.0)
    assert fine.quantile(q).value == pytest.approx(1000 * q, abs=1)
