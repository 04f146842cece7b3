"""Faults: counted, logged once, switched off in time; loud in our own tests only."""

from __future__ import annotations

import logging

import pytest

from loopscope.core.faults import Faults


@pytest.mark.quiet_faults
def test_the_first_of_a_kind_is_logged_with_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The others are only counted: a fault on every request must not flood the log."""
    faults, error = Faults(), LookupError("no")
    for _ in range(3):
        faults.report("routes", error)
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("loopscope", logging.WARNING)
    assert "routes failed" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is error
    assert faults.counts == {"routes": 3}


@pytest.mark.quiet_faults
def test_another_kind_or_another_part_is_logged_again(caplog: pytest.LogCaptureFixture) -> None:
    """A new type of exception is news, and so is a known one somewhere else."""
    faults = Faults()
    for part, error in [("a", KeyError()), ("a", OSError()), ("b", KeyError()), ("a", KeyError())]:
        faults.report(part, error)
    assert len(caplog.records) == 3
    assert faults.counts == {"a": 3, "b": 1}


@pytest.mark.quiet_faults
def test_a_part_is_off_at_its_hundredth_failure_and_not_before(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The switch is logged once, and other parts go on."""
    faults = Faults()
    for _ in range(Faults.TOLERANCE):
        assert not faults.is_off("routes")
        faults.report("routes", LookupError("no"))
    faults.report("routes", LookupError("a straggler"))
    assert faults.is_off("routes")
    assert not faults.is_off("traces")
    assert [record.levelno for record in caplog.records] == [logging.WARNING, logging.ERROR]


@pytest.mark.quiet_faults
def test_asking_leaves_no_trace() -> None:
    """Only parts that failed are listed, and the list is the caller's own."""
    faults = Faults()
    assert not faults.is_off("routes")
    faults.counts["routes"] = 5
    assert faults.counts == {}


def test_in_our_own_tests_a_fault_is_loud() -> None:
    """The very exception that was reported comes out, and nothing is swallowed."""
    error = LookupError("no")
    with pytest.raises(LookupError) as caught:
        Faults().report("routes", error)
    assert caught.value is error


def test_a_service_never_hears_of_it() -> None:
    """Loudness is off unless the test suite has turned it on."""
    loud, Faults.loud = Faults.loud, False
    try:
        Faults().report("routes", LookupError("no"))
    finally:
        Faults.loud = loud
