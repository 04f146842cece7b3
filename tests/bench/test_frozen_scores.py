"""What the benchmark of freezes counts as seen, wrong, and one record."""

from __future__ import annotations

from typing import Any

import pytest

from _frozen_scores import Freeze, Tally
from loopscope.core.stall import Stall, as_json

LINE = "app/service.py:7 f"


def freeze(**parts: Any) -> Freeze:
    """One on the loop that holds it from 100 to 101, on `LINE`."""
    return Freeze(
        "re", "asyncio", 1000, 5, 100.0, 101.0, ["service.py:7"], **{"route": "/f"} | parts
    )


def shown(start: float = 100.0, seconds: float = 1.0, **parts: Any) -> dict[str, Any]:
    """A record of it, which says nothing but when."""
    return as_json(Stall("1", start, seconds, worker="5")) | parts


def outside(**parts: Any) -> dict[str, Any]:
    return {"location": "", "thread": "", "thread_location": ""} | parts


def tally(found: Freeze, *answers: dict[str, Any]) -> Tally:
    found.see(answers, 100.5)
    return Tally.of([found])


def test_what_the_worker_says_itself_is_not_seen_from_outside() -> None:
    """It is right all the same, and named."""
    found = tally(freeze(), shown(location=LINE, route="/f"))
    assert (found.seen, found.wrong, found.route, found.one) == (0, 0, 1, 1)
    assert found.named_after == [0.5]
    seen = tally(freeze(), shown(outside=outside(location=LINE)))
    assert (seen.seen, seen.wrong) == (1, 0)


def test_any_other_line_is_an_accusation() -> None:
    """Told apart by who makes it: who looked from outside, or the worker."""

    def accusations(*answers: dict[str, Any]) -> tuple[int, int]:
        found = tally(freeze(), *answers)
        return found.wrong, found.told_wrong

    other = "app/service.py:8 g"
    assert accusations(shown(location=other)) == (0, 1)
    assert accusations(shown(location=LINE, outside=outside(location=other))) == (1, 0)
    thief = {"thread_name": "thief", "thread_location": LINE}
    assert accusations(shown(evidence=thief)) == (0, 1)
    assert accusations() == accusations(shown()) == (0, 0)


def test_a_thread_has_to_be_named_with_its_line() -> None:
    """The same line on the loop's own account is an accusation."""
    seen = outside(thread="thief", thread_location=LINE)
    found = tally(freeze(thread="thief", route=""), shown(outside=seen))
    assert (found.seen, found.wrong, found.route) == (1, 0, 1)
    found = tally(freeze(thread="thief"), shown(location=LINE))
    assert (found.seen, found.told_wrong) == (0, 1)


def test_a_record_of_another_worker_or_moment_is_not_of_it() -> None:
    """Two of the same moment are one too many."""
    assert not tally(freeze(), shown(worker="6"), shown(start=101.5), shown(start=99.0)).one
    assert tally(freeze(), shown(), shown(seconds=0.6)).one == 0
    (error,) = tally(freeze(), shown(seconds=0.9)).errors
    assert error == pytest.approx(-0.1)


def test_what_waited_for_a_cpu_itself_is_disturbed() -> None:
    """Nobody has to be accused for that."""
    assert tally(freeze(waited=0.3)).disturbed == 1
    assert tally(freeze(waited=0.2)).disturbed == 0
