"""How often something is done that costs."""

from __future__ import annotations

import pytest

from loopscope.core.clock import FakeTime
from loopscope.core.pace import Pace


@pytest.mark.parametrize("seconds", [0.001, 0.04, 2.0])
def test_no_more_than_its_share_is_taken(seconds: float) -> None:
    """What is done as soon as it is due takes a hundredth of the time, however long it takes."""
    time, pace = FakeTime(), Pace(0.01)
    spent, began = 0.0, time.now()
    while spent < 100 * seconds:
        if pace.is_due(time.now()):
            pace.took(time.now(), seconds)
            spent += seconds
        time.advance(seconds)
    assert spent / (time.now() - began) == pytest.approx(0.01, rel=0.05)


def test_what_costs_nothing_is_due_at_once() -> None:
    """There is nothing to wait for before the first time, nor after something cheap."""
    time, pace = FakeTime(), Pace(0.01)
    assert pace.is_due(time.now())
    pace.took(time.now(), 0.0)
    assert pace.is_due(time.now())
