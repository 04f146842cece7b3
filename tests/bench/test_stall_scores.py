"""What the stall benchmark counts as found, right, wrong, and a false alarm."""

from __future__ import annotations

from typing import Any

import pytest

from _stall_placements import BYSTANDER_ROUTE
from _stall_records import Answer, Control, Hold, Report, Run, Truth
from _stall_scores import joined, judge, live, score

LINE = "service.py:7"


def stall(start: float = 1.0, seconds: float = 0.2, **said: Any) -> Truth:
    """A stall whose line is `LINE`, unless said otherwise."""
    given: dict[str, Any] = {"lines": [LINE], "causes": ["cpu"], **said}
    return Truth("python", "handler", seconds, start=start, end=start + seconds, **given)


def report(start: float = 1.0, seconds: float = 0.2, name: str = "1", **said: Any) -> Report:
    """A report of what `stall` plays."""
    return Report(name, seconds, start, **said)


def run(*said: Truth | Report | Control | Hold) -> Run:
    """A run in which all that happened and was said."""
    found = Run("tool", "asyncio")
    for each in said:
        if isinstance(each, Truth):
            found.truths.append(each)
        elif isinstance(each, Control):
            found.controls.append(each)
        elif isinstance(each, Hold):
            found.holds.append(each)
        else:
            found.reports[each.id] = each
    return found


def result(*said: Truth | Report | Control | Hold) -> dict[str, Any]:
    return score([run(*said)])


def test_a_report_that_overlaps_a_stall_has_found_it() -> None:
    """Where it says when, it need not say more."""
    assert result(stall(), report(1.05, 0.1))["detected"] == (1, 1)


def test_a_report_of_another_moment_finds_nothing_and_is_stray() -> None:
    """A heartbeat's tick beside the stall is forgiven, a tenth of a second is not."""
    found = result(stall(), report(1.3))
    assert found["detected"] == (0, 1)
    assert found["stray"] == 1
    assert result(stall(), report(1.21))["detected"] == (1, 1)


def test_a_report_counts_for_one_stall_only() -> None:
    """The one that it overlaps most."""
    found = result(stall(1.0), stall(1.25), report(1.19, 0.2))
    assert found["detected"] == (1, 2)


def test_what_is_too_short_is_neither_asked_for_nor_a_false_alarm() -> None:
    """Thirty milliseconds are below everybody's threshold."""
    found = result(stall(seconds=0.03), report(seconds=0.03))
    assert found["detected"] == (0, 0)
    assert found["short"] == (1, 1)
    assert found["stray"] == 0


def test_a_stall_that_the_machine_drew_out_is_set_aside() -> None:
    """Its line blocked, and the machine did: nobody can be told right from wrong by it."""
    found = result(stall(queued_s=0.1), report(causes=["starved"]))
    assert found["detected"] == (0, 0)
    assert found["disturbed"] == 1
    assert found["stray"] == 0
    assert result(stall(queued_s=0.01))["disturbed"] == 0


def test_a_line_is_right_whatever_directory_it_is_given_in() -> None:
    """Tools shorten paths as they like."""
    for location in (LINE, f"/srv/app/{LINE}"):
        found = result(stall(), report(location=location))
        assert found["located"] == (1, 1)
        assert found["wronged"] == (0, 1)


@pytest.mark.parametrize("location", ["service.py:8", "other_service.py:7"])
def test_a_line_that_did_not_block_is_a_wrong_accusation(location: str) -> None:
    """Near misses included."""
    found = result(stall(), report(location=location))
    assert found["located"] == (0, 1)
    assert found["wronged"] == (1, 1)


def test_one_wrong_report_spoils_a_right_one() -> None:
    """Whoever reads both does not know which to believe."""
    both = (report(location=LINE), report(name="2", location="service.py:8"))
    found = result(stall(), *both)
    assert found["located"] == found["wronged"] == (1, 1)
    assert found["by_kind"]["python"]["named"] == (0, 1)


def test_naming_a_request_that_only_waited_is_a_wrong_accusation() -> None:
    """Being in flight is no guilt."""
    assert result(stall(), report(culprit=f"GET {BYSTANDER_ROUTE}"))["wronged"] == (1, 1)


def test_no_line_is_asked_for_in_less_than_a_tenth_of_a_second() -> None:
    """The stall still counts as detected or missed."""
    found = result(stall(seconds=0.06), report(seconds=0.06))
    assert found["located"] == (0, 0)
    assert found["detected"] == (1, 1)


def test_stalls_without_a_line_are_scored_by_what_they_should_name() -> None:
    """The cause for a collection, the thread for one that kept the interpreter."""
    gc = stall(causes=["gc"], names="cause")
    thief = stall(names="culprit", culprits=["thumbnails"])
    named = [
        (gc, report(causes=["gc"]), 1),
        (gc, report(causes=["cpu"]), 0),
        (gc, report(causes=["gc"], location="service.py:99"), 0),
        (thief, report(culprit="thread thumbnails"), 1),
        (thief, report(), 0),
    ]
    for truth, said, hits in named:
        found = result(truth, said)
        assert found["located"] == (0, 0)
        assert found["by_kind"]["python"]["named"] == (hits, 1)


def test_a_stall_without_any_line_makes_every_line_wrong() -> None:
    """As where the loop itself calls C."""
    truth = stall(lines=[], names="culprit", culprits=["sleep"])
    found = result(truth, report(location=LINE, culprit="time.sleep"))
    assert found["wronged"] == (1, 1)
    assert found["by_kind"]["python"]["named"] == (0, 1)


def test_a_word_that_takes_the_cause_in_is_right() -> None:
    """Tools with two words for it are held against no finer ones; silence is not right."""
    assert result(stall(), report(causes=["cpu", "gc"]))["explained"] == (1, 1)
    assert result(stall(), report(causes=["lock"]))["explained"] == (0, 1)
    assert result(stall(), report())["explained"] == (0, 1)


def test_a_culprit_counts_only_where_there_is_one() -> None:
    """A plain callback has neither route nor task."""
    assert result(stall(), report(culprit="anybody"))["identified"] == (0, 0)
    truth = stall(culprits=["refresh"])
    assert result(truth, report(culprit="Task refresh()"))["identified"] == (1, 1)


def test_several_reports_of_one_stall_are_joined_without_gaps_or_doubles() -> None:
    """So the duration's error is the same whether a tool speaks once or often."""
    assert joined([report(1.0, 0.1), report(1.05, 0.1), report(1.3, 0.1)]) == pytest.approx(0.25)
    found = result(stall(), report(1.0, 0.1), report(1.1, 0.08, name="2"))
    assert found["error_ms"]["median"] == pytest.approx(20)
    assert found["events_per_stall"] == 2


def test_a_report_of_a_quiet_spell_is_a_false_alarm() -> None:
    """And not stray as well."""
    found = result(Control("idle", 5.0, 10.0, 0.0), report(6.0))
    assert found["controls"]["idle"]["alarms"] == 1
    assert found["stray"] == 0


def test_a_report_is_excused_where_our_own_timer_came_late() -> None:
    """The machine did it; with hogs about, accusing a line is wrong all the same."""
    late = [(6.0, 6.2)]
    for name, said, alarms in (
        ("busy", report(6.0, location=LINE), 0),
        ("busy", report(7.0), 1),
        ("hogs", report(6.0), 0),
        ("hogs", report(6.0, location=LINE), 1),
        ("hogs", report(6.0, location=LINE, causes=["starved"]), 0),
    ):
        found = result(Control(name, 5.0, 10.0, 0.0, late), said)
        assert found["controls"][name]["alarms"] == alarms


def test_a_stopped_process_may_be_reported_as_stopped_and_as_nothing_else() -> None:
    """Nobody's code was to blame."""
    for causes, alarms in ((["suspended"], 0), (["cpu"], 1), (None, 1)):
        found = result(Control("stopped", 5.0, 10.0, 0.0), report(6.0, causes=causes))
        assert found["controls"]["stopped"]["alarms"] == alarms


def test_runs_are_matched_each_by_itself_and_counted_together() -> None:
    """Clocks of two processes have nothing in common."""
    found = score([run(stall(), report()), run(stall())])
    assert found["detected"] == (1, 2)


def test_only_what_was_said_while_it_lasted_was_seen_live() -> None:
    """An answer that came when it was over is no live one."""
    told = report(seconds=0.5, location=LINE)
    for at, seen in ((1.6, pytest.approx(0.6)), (4.5, None)):
        hold = Hold(stall(seconds=3.0), [Answer(at, told)])
        found = live(hold, judge(run(hold)).holds[0])
        assert found["seen_after_s"] == seen
        assert not found["detected"]


def test_a_long_stall_is_not_among_those_that_are_counted() -> None:
    """Nor are the reports of it stray."""
    found = result(Hold(stall(seconds=3.0)), report(seconds=3.0, location=LINE))
    assert found["detected"] == (0, 0)
    assert found["stray"] == 0
    assert found["holds"][0]["named"]
