"""The gaps of a request are shared out among phases, and nothing is lost or counted twice."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.phases import (
    CLIENT_DOWNLOAD,
    LOOP_WAIT,
    MOST_CHANGES,
    NOWHERE,
    POOL_WAIT,
    THREAD_RUN,
    THREAD_WAIT,
    Gaps,
    Stay,
)

END = 40
moments = st.integers(0, END)
visits = st.lists(
    st.tuples(st.sampled_from((POOL_WAIT, THREAD_WAIT, THREAD_RUN)), moments, moments), max_size=6
)


def close(gaps: Gaps, began: float, ended: float, **more: Any) -> list[float]:
    """The seconds by phase after one gap, of which nothing special is known."""
    gaps.close(began, ended, **{"ready": ended, "doubtful": ended, **more})
    return gaps.seconds


def visited(gaps: Gaps, visits: list[tuple[int, int, int]]) -> None:
    """Have one thing in each phase from the earlier moment to the later."""
    moves: list[tuple[int, int, Stay, int]] = []
    for number, (phase, *moments) in enumerate(visits):
        stay = Stay(gaps)
        moves.append((min(moments), 2 * number, stay, phase))
        moves.append((max(moments), 2 * number + 1, stay, NOWHERE))
    for at, _, stay, phase in sorted(moves, key=lambda move: move[:2]):
        stay.move(phase, at)


def expected(
    visits: list[tuple[int, int, int]], gaps: list[tuple[int, int]], ready: int, doubtful: int
) -> Counter[int]:
    """The same, moment by moment."""
    seconds: Counter[int] = Counter()
    for began, ended in gaps:
        for moment in range(began, ended):
            inside = [p for p, *ends in visits if min(ends) <= moment < max(ends)]
            otherwise = LOOP_WAIT if moment >= doubtful else NOWHERE
            seconds[LOOP_WAIT if moment >= ready else min(inside, default=otherwise)] += 1
    return seconds


@given(visits, st.lists(moments, min_size=2, max_size=9, unique=True), moments, moments)
def test_each_moment_of_each_gap_is_in_one_phase(
    visits: list[tuple[int, int, int]], edges: list[int], ready: int, doubtful: int
) -> None:
    """However much overlaps, phases add up to the gaps, and the first phase in order has it."""
    edges.sort()
    between = list(zip(edges[::2], edges[1::2], strict=False))
    gaps = Gaps()
    visited(gaps, visits)
    for began, ended in between:
        gaps.close(began, ended, ready=ready, doubtful=doubtful)
    assert sum(gaps.seconds) == sum(ended - began for began, ended in between)
    assert Counter(dict(enumerate(gaps.seconds))) == expected(visits, between, ready, doubtful)


def test_what_comes_from_several_threads_may_be_out_of_order() -> None:
    """Changes that were appended late lose no time and make none."""
    gaps = Gaps()
    first, second = Stay(gaps), Stay(gaps)
    first.move(THREAD_RUN, 1.0)
    second.move(THREAD_RUN, 3.0)
    first.move(NOWHERE, 2.0)
    second.move(NOWHERE, 4.0)
    assert sum(close(gaps, 0.0, 5.0)) == 5.0
    assert gaps.seconds[THREAD_RUN] == 3.0
    assert gaps.is_settled()


def test_what_is_under_way_stays_so_in_the_next_gap() -> None:
    """A job that outlasts a gap is found again, as far as it goes, in the gap after the step."""
    gaps = Gaps()
    job = Stay(gaps)
    job.move(THREAD_RUN, 0.0)
    close(gaps, 0.0, 1.0)
    assert not gaps.is_settled()
    job.move(NOWHERE, 3.0)
    assert close(gaps, 2.0, 4.0)[THREAD_RUN] == 2.0
    assert gaps.is_settled()


@pytest.mark.parametrize(("waiting_for", "phase"), [("job", LOOP_WAIT), ("other", NOWHERE)])
def test_who_waited_for_a_job_waits_for_the_loop_once_it_is_over(
    waiting_for: str, phase: int
) -> None:
    """Only where the job is what was waited for: else there was something else to wait for."""
    gaps = Gaps()
    job = Stay(gaps)
    job.awaited = "job"
    job.move(THREAD_RUN, 0.0)
    job.move(NOWHERE, 1.0)
    assert close(gaps, 0.0, 3.0, waiting_for=waiting_for)[phase] == 2.0


def test_doubt_ends_where_something_is_known() -> None:
    """During a stall a job may have run on: only the rest may have been waiting for the loop."""
    gaps = Gaps()
    job = Stay(gaps)
    job.move(THREAD_RUN, 0.0)
    job.move(NOWHERE, 2.0)
    assert close(gaps, 0.0, 4.0, doubtful=1.0)[THREAD_RUN] == 2.0
    assert gaps.seconds[LOOP_WAIT] == gaps.estimated == 2.0


def test_where_nothing_is_under_way_the_gap_is_what_the_app_waits_for() -> None:
    """A gap in ``send`` is the client's, but for what a thread did in it."""
    gaps = Gaps()
    job = Stay(gaps)
    job.move(THREAD_RUN, 1.0)
    job.move(NOWHERE, 2.0)
    seconds = close(gaps, 0.0, 4.0, waiting_as=CLIENT_DOWNLOAD)
    assert seconds[CLIENT_DOWNLOAD] == 3.0
    assert seconds[THREAD_RUN] == 1.0


def test_changes_are_bounded() -> None:
    """What would be kept beyond the bound is not begun."""
    gaps = Gaps()
    for _ in range(MOST_CHANGES + 10):
        Stay(gaps).move(THREAD_WAIT, 0.0)
    assert len(gaps.changes) == MOST_CHANGES


def test_beyond_the_bound_what_has_begun_still_ends() -> None:
    """Nothing is left under way because too much has happened in one gap."""
    gaps = Gaps()
    stays = [Stay(gaps) for _ in range(MOST_CHANGES + 10)]
    for stay in stays:
        stay.move(THREAD_WAIT, 0.0)
    for stay in stays:
        stay.move(NOWHERE, 1.0)
    assert close(gaps, 0.0, 3.0)[THREAD_WAIT] == 1.0
    assert gaps.is_settled()
