"""Stalls as others tell of them."""

from __future__ import annotations

from typing import Any

import pytest

from loopscope.core.stall import Stall, as_json, in_order, joined, told


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


SEEN = {"looks": 1, "frames": ["app.py:3 f"]}


def seen(**parts: Any) -> dict[str, Any]:
    known = {"worker": "7", "cause": "cpu", "location": "app.py:3 f", "outside": SEEN}
    return note("seen", **{**known, **parts})


def test_two_views_of_one_stall_are_one_record() -> None:
    """The worker knows when and who, and has that from outside besides."""
    own = note("own", worker="7", cause="cpu", location="app.py:3 f", route="/f", duration_s=2.1)
    (stall,) = joined([own, seen(started_at=100.1, duration_s=1.9)])
    assert stall == {**own, "outside": SEEN}


def test_what_a_worker_cannot_know_is_taken_from_outside() -> None:
    """Who kept the interpreter from it, and from which line."""
    own = note("own", worker="7", cause="unknown", evidence={"cpu_s": 0.1})
    thief = {"thread_name": "cruncher", "thread_location": "app.py:9 crunch"}
    (stall,) = joined([seen(cause="blocking_call", route="/f", evidence=thief), own])
    assert (stall["id"], stall["cause"], stall["location"]) == (
        "own",
        "blocking_call",
        "app.py:3 f",
    )
    assert stall["evidence"] == {"cpu_s": 0.1, **thief}
    assert stall["route"] == "/f"


def test_a_thread_that_a_worker_could_not_see_is_named_in_its_record() -> None:
    """It knows that the interpreter was kept from it; by whom shows from outside."""
    own = note("own", worker="7", cause="gil_contention", evidence={"cpu_s": 0.1})
    thief = {"thread_name": "cruncher", "thread_location": "app.py:9 crunch"}
    (stall,) = joined([own, seen(cause="gil_contention", location="", evidence=thief)])
    assert stall["evidence"] == {"cpu_s": 0.1, **thief}
    late = {"thread_name": "cruncher", "thread_location": "app.py:10 crunch"}
    own = note("own", worker="7", cause="gil_contention", evidence=late)
    (stall,) = joined([own, seen(cause="gil_contention", location="", evidence=thief)])
    assert stall["evidence"] == thief
    unknowing = note("own", worker="7", cause="unknown")
    (stall,) = joined([unknowing, seen(cause="gil_contention", location="", evidence=thief)])
    assert (stall["cause"], stall["evidence"]) == ("gil_contention", thief)


@pytest.mark.parametrize("keeps_gil", [True, False])
def test_a_worker_is_not_believed_about_what_it_cannot_have_seen(*, keeps_gil: bool) -> None:
    """The call that blocked kept the interpreter too: what its watchdog saw came afterwards."""
    own = note("own", worker="7", cause="blocking_call", location="app.py:4 innocent")
    outside = {**SEEN, "keeps_gil": keeps_gil}
    (stall,) = joined([own, seen(cause="blocking_call", outside=outside)])
    assert stall["location"] == ("app.py:3 f" if keeps_gil else "app.py:4 innocent")


def test_a_doubtful_look_does_not_unsettle_a_verdict() -> None:
    """What was seen is kept beside what the worker knows."""
    own = note("own", worker="7", cause="gc")
    (stall,) = joined([own, seen(cause="unknown", location="")])
    assert (stall["cause"], stall["location"], stall["outside"]) == ("gc", "", SEEN)


@pytest.mark.parametrize("parts", [{"worker": "8"}, {"started_at": 103.0}, {"started_at": 97.0}])
def test_other_stalls_stand_for_themselves(parts: dict[str, Any]) -> None:
    """Of another worker, or at another time."""
    own = note("own", worker="7")
    assert joined([own, seen(**parts)]) == [own, seen(**parts)]


def test_a_stall_that_goes_on_has_lasted_as_long_as_either_knows() -> None:
    """The worker may have said its last word long ago."""
    own = note("own", worker="7", in_progress=True, duration_s=0.3)
    (stall,) = joined([own, seen(in_progress=True, duration_s=9.0)])
    assert stall["duration_s"] == 9.0
