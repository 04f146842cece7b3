"""The log line of a stall."""

from __future__ import annotations

import json
import logging

import pytest

from loopscope.core.clock import FakeTime
from loopscope.core.stall import Stall
from loopscope.exporters.log import StallLog, sentence

STALL = Stall(
    "1-1",
    started_at=1_700_000_000.0,
    duration_s=0.312,
    cause="blocking_call",
    location="app/report.py:41 build",
    label="app/report.py build",
    route="/report",
    method="GET",
    victims={("/items/{id}", "GET"): (11, 3.0), ("/report", "POST"): (1, 0.1)},
)


def test_a_line_says_what_happened_where_and_to_whom() -> None:
    """One sentence: how long, why, which line and route, how many waited."""
    assert sentence(STALL) == (
        "event loop held for 312 ms: a blocking call at app/report.py:41 build in GET /report; "
        "12 requests waited, 3.10 s in all"
    )


def test_nobody_is_accused_where_nobody_is_known() -> None:
    """Without a line, a route or victims the sentence ends early."""
    assert sentence(Stall("1", 0.0, 0.5, cause="starved")) == (
        "event loop held for 500 ms: the process was not given a CPU"
    )


def test_each_place_may_speak_three_times_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Lines are limited by place and counted; the next minute begins with how many there were."""
    time = FakeTime()
    log = StallLog(time.now)
    other = Stall("2", 0.0, 0.1, leaf="selectors.py:1 select")
    with caplog.at_level(logging.WARNING, "loopscope"):
        for _ in range(10):
            log.write(STALL)
        log.write(other)
        assert len(caplog.records) == 4
        assert log.suppressed == 7
        time.advance(61)
        log.write(STALL)
    assert "7 more like this were not logged" in caplog.records[-1].getMessage()


def test_the_record_carries_the_whole_stall(caplog: pytest.LogCaptureFixture) -> None:
    """Formatters for machines find the stall as a mapping that JSON can hold."""
    with caplog.at_level(logging.WARNING, "loopscope"):
        StallLog(FakeTime().now).write(STALL)
    carried = caplog.records[0].__dict__["loopscope_stall"]
    assert json.loads(json.dumps(carried))["victims"]["requests"] == 12
