"""Stalls as others tell of them."""

from __future__ import annotations

from typing import Any

import pytest

from loopscope.core.stall import Stall, as_json, in_order, told


def note(id: str = "1", **parts: Any) -> dict[str, Any]:
    stall = as_json(Stall(id, started_at=100.0, duration_s=2.0))
    return {**stall, **parts}


def test_the_latest_word_counts() -> None:
    """A stall that was told of while it lasted is one stall, as it was in the end."""
    over = note(duration_s=3.0, cause="cpu")
    assert told([note(in_progress=True), over], alive=True, now=110.0) == [over]


def test_a_stall_of_a_living_worker_goes_on() -> None:
    """It lasts until now, whenever it was last spoken of."""
    (stall,) = told([note(in_progress=True)], alive=True, now=110.0)
    assert (stall["in_progress"], stall["cut_short"], stall["duration_s"]) == (True, False, 10.0)


def test_a_stall_of_a_dead_worker_was_cut_short() -> None:
    """How long it lasted by its last word is all that is known."""
    (stall,) = told([note(in_progress=True)], alive=False, now=110.0)
    assert (stall["in_progress"], stall["cut_short"], stall["duration_s"]) == (False, True, 2.0)


@pytest.mark.parametrize(
    "parts",
    [{"id": 1}, {"started_at": "now"}, {"duration_s": None}, {"victims": 3}, {"victims": {}}],
)
def test_what_is_no_stall_is_left_out(parts: dict[str, Any]) -> None:
    """Whatever a note says, readers find the types they count on."""
    assert told([note(**parts), {"any": "thing"}], alive=True, now=0.0) == []


def test_what_an_older_version_did_not_tell_has_its_default() -> None:
    """And what a newer one tells in addition is passed on."""
    (stall,) = told(
        [{"id": "1", "started_at": 1.0, "duration_s": 1.0, "new": 2}], alive=True, now=5.0
    )
    assert (stall["cause"], stall["in_progress"], stall["new"]) == ("unknown", False, 2)


def test_order() -> None:
    """By what was asked for, those in progress first, no more than were asked for."""
    lost = {"requests": 1, "seconds": 9.0, "by_route": {}}
    stalls = [
        note("old", started_at=1.0, victims=lost),
        note("long", duration_s=5.0),
        note("new", started_at=200.0),
        note("now", started_at=0.0, in_progress=True),
    ]
    found = {order: [s["id"] for s in in_order(stalls, order)] for order in ("newest", "longest")}
    assert found == {
        "newest": ["now", "new", "long", "old"],
        "longest": ["now", "long", "old", "new"],
    }
    assert [stall["id"] for stall in in_order(stalls, "lost", 2)] == ["now", "old"]
