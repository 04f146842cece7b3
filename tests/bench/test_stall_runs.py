"""What a stall benchmark keeps, draws, and does with a worker that hangs."""

from __future__ import annotations

import os
import signal
from dataclasses import asdict
from pathlib import Path

import pytest

from _pipe import Worker, WorkerError
from _stall_journal import Journal, read, runs
from _stall_plan import Shape
from _stall_records import Answer, Control, Hold, Report, Truth
from _stats import poisson_limit


def test_a_run_comes_back_from_its_file_as_far_as_it_got(tmp_path: Path) -> None:
    """A line that was cut off costs that line only, and files add up."""
    truth, report = Truth("sleep", "task", 0.1, [], []), Report("1", 0.1, 2.0)
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        journal = Journal(path)
        name = journal.begin("tool", "uvloop", planned=3)
        journal.add(run=name, truth=asdict(truth), reports=[asdict(report)])
        journal.add(run=name, hold=asdict(Hold(truth, [Answer(2.1, report)])), reports=[])
        journal.add(run=name, control=asdict(Control("idle", 0.0, 1.0, 0.1)), reports=[])
        journal.add(run=name, failed="killed")
    with paths[1].open("a") as file:
        file.write('{"run": "x", "tru')
    for found in runs(read(paths)):
        assert (found.tool, found.loop, found.planned) == ("tool", "uvloop", 3)
        assert found.truths == [truth]
        assert found.reports == {"1": report}
        assert found.holds[0].answers == [Answer(2.1, report)]
        assert found.controls[0].name == "idle"
        assert found.failed == "killed"
    assert len(runs(read(paths))) == 2


def test_a_later_report_takes_the_place_of_the_earlier_one() -> None:
    """Tools correct themselves."""
    journal = Journal(None)
    name = journal.begin("tool", "uvloop", planned=0)
    for seconds in (0.1, 0.3):
        journal.add(run=name, reports=[asdict(Report("1", seconds, 2.0))])
    assert runs(journal.lines)[0].reports["1"].duration_s == 0.3


def test_fewer_stalls_are_the_same_ones_in_the_same_order() -> None:
    """So peers that get less of it get nothing else."""
    shape = Shape(["sleep", "reader"], ["handler", "task"], [0.1, 0.2], [0.03], seed=4)
    many, few = shape.draw(6), shape.draw(2)
    assert len(few) == 2 * 2 * 2 + 1
    assert [stall for stall in many if stall in few] == few
    assert {stall.placement for stall in many if stall.kind == "reader"} == {"loop"}


def test_no_event_in_an_hour_still_allows_three() -> None:
    """The rule of three; and a limit is above what was seen."""
    assert poisson_limit(0) == pytest.approx(3.0, abs=0.01)
    assert poisson_limit(5) > 5


def test_a_worker_that_hangs_is_killed_and_says_why(tmp_path: Path) -> None:
    """Even one that is stopped."""
    script = tmp_path / "hangs.py"
    script.write_text(
        "import json, os; print(json.dumps({'pid': os.getpid()}), flush=True); input()"
    )
    with Worker(str(script)) as worker:
        os.kill(worker.hear()["pid"], signal.SIGSTOP)
        reason = pytest.raises(WorkerError, match="killed: the question took more")
        with reason, worker.within(0.2, "the question"):
            worker.ask(question=True)
        with pytest.raises(WorkerError):
            worker.ask(question=True)
