"""Metric declarations: refused where they contradict themselves."""

from __future__ import annotations

from math import inf, nan

import pytest

from loopscope.core import metric
from loopscope.core.metric import Kind, Metric


@pytest.mark.parametrize(
    ("name", "kind", "bounds", "complaint"),
    [
        ("things", "counter", (), "end in _total"),
        ("things_total", "gauge", (), "end in _total"),
        ("things_total", "histogram", (1.0,), "end in _total"),
        ("things", "histogram", (), "a histogram has bounds"),
        ("things", "gauge", (1.0,), "nothing else does"),
        ("things", "histogram", (2.0, 1.0), "ascend"),
        ("things", "histogram", (1.0, 1.0), "without repeating"),
        ("things", "histogram", (1.0, inf), "finite"),
        ("things", "histogram", (-inf, 1.0), "finite"),
        ("things", "histogram", (nan,), "finite"),
        ("things", "summary", (), "no kind"),
    ],
)
def test_a_contradiction_is_refused_by_name(
    name: str, kind: Kind, bounds: tuple[float, ...], complaint: str
) -> None:
    """Name, kind and bounds have to agree, and the message says whose do not."""
    with pytest.raises(ValueError, match=rf"^{name}: .*{complaint}"):
        Metric(name, kind, "Help.", bounds=bounds)


@pytest.mark.parametrize("kind", ["counter", "gauge"])
def test_a_single_number_takes_one_slot(kind: Kind) -> None:
    """Counters and gauges are one float64."""
    assert Metric("a_total" if kind == "counter" else "a", kind, "Help.").slot_count == 1


def test_a_histogram_takes_a_slot_for_each_bucket_and_the_sum() -> None:
    """There is one bucket more than there are bounds: +Inf."""
    assert Metric("a", "histogram", "Help.", bounds=(1.0, 2.0)).slot_count == 4


def test_a_family_is_called_as_openmetrics_calls_it() -> None:
    """The family's name is the counter's without _total, and any other's unchanged."""
    assert Metric("a_total", "counter", "Help.").family == "a"
    assert Metric("a_total_seconds", "gauge", "Help.").family == "a_total_seconds"


@pytest.mark.parametrize("name", [name for name in vars(metric) if name.endswith("_BOUNDS")])
def test_every_shared_set_of_bounds_makes_a_histogram(name: str) -> None:
    """Bounds offered to sources are themselves fit to be declared."""
    assert Metric("a", "histogram", "Help.", bounds=getattr(metric, name)).bounds


def test_metrics_are_told_apart_by_all_they_say() -> None:
    """Equal declarations are equal, one differing bound makes them different."""
    one, same, other = (
        Metric("a", "histogram", "Help.", bounds=bounds) for bounds in ((1.0,), (1.0,), (2.0,))
    )
    assert one == same != other
    assert len({one, same, other}) == 2
