"""A hang's record: what several looks at it come to."""

from __future__ import annotations

from pathlib import Path

from loopscope.core.clock import FakeTime
from loopscope.sentinel.hang import Hang
from loopscope.sentinel.heartbeats import Heart
from loopscope.sentinel.view import View

BLOCKS = View("blocking_call", location="app.py:3 f", route="/f", frames=("app.py:3 f",))
WAITS = View("blocking_call", location="app.py:9 g", frames=("app.py:9 g",))
COMPUTES = View("cpu", location="app.py:3 f", frames=("app.py:3 f",))
NOTHING = View("unknown", leaf="app.py:4 f", frames=("app.py:4 f",))


def after(*views: View) -> View:
    heart = Heart(pid=1, path=Path("1.page"), file=-1, since=0.0)
    hang = Hang(heart, "1", thread=1, due=10.0, id="1-seen-1", noticed=10.0, before=None)
    for view in views:
        hang.add(view)
    stall = hang.record(FakeTime().clock(), 12.0, in_progress=False)
    assert stall.outside is not None and stall.outside["looks"] == len(views)
    return hang.view()


def test_without_a_look_nothing_is_known() -> None:
    """But that the loop hangs."""
    assert after() == View("unknown")


def test_what_most_looks_saw_is_told() -> None:
    """Of those that agree with the latest about the cause."""
    assert after(BLOCKS, WAITS, BLOCKS, WAITS, BLOCKS) == BLOCKS
    assert after(BLOCKS, BLOCKS, COMPUTES) == COMPUTES


def test_a_look_that_saw_no_cause_does_not_undo_the_others() -> None:
    """It was just over, perhaps."""
    assert after(BLOCKS, NOTHING) == BLOCKS
    assert after(NOTHING, NOTHING) == NOTHING
