"""What is said of a shop that stood still, from what was answered while it did."""

from __future__ import annotations

from typing import Any

from demo_app.freezes import Answer, Freeze, seen_from_outside, sentinel, watched
from demo_app.scrape import Scrape, between, parse
from demo_app.verdict import stall_remarks

HELD = "asyncio_eventloop_stall_in_progress_seconds"
LINE = "shop/codes.py:7 accept"


def stall(**more: Any) -> dict[str, Any]:
    """A stall as ``/api/stalls`` shows it."""
    known = {"duration_s": 2.04, "cause": "cpu", "location": LINE, "route": "/orders"}
    return {**known, "outside": None, "evidence": {}, **more}


def look(looks: int = 3, **more: Any) -> dict[str, Any]:
    """What was seen of it from outside."""
    known = {"cause": "cpu", "location": LINE, "leaf": LINE, "thread": "", "thread_location": ""}
    return {"looks": looks, **known, **more}


THREAD = look(1, cause="gil_contention", location="", thread="restock", thread_location=LINE)


def test_an_answer_is_for_how_long_the_loop_is_held() -> None:
    """That of the worker whose loop is held longest; 0 where there is none."""
    text = f'# TYPE x gauge\nx 9\n{HELD}{{worker="1"}} 0.0\n{HELD}{{worker="2"}} 1.5\n'
    assert Answer.of(text, 0.02) == Answer(0.02, 1.5)
    assert Answer.of("x 9\n", 0.02).held_s == 0.0


def test_what_was_answered_meanwhile_is_told_with_the_slowest_answer() -> None:
    """How often, within what time, and what the last said."""
    answers = [Answer(0.0101, 0.4), Answer(0.0302, 1.9)]
    ((told, (said, outside)),) = watched(
        [Freeze("accept", answers, stall(outside=look()), stall(outside=look(9)))]
    )
    assert told
    assert said == (
        "accept: the shop stood still for 2.0 s. /metrics answered 2 x meanwhile, within 30.2 ms, "
        "and said at last: held for 1.9 s."
    )
    assert outside == (f"Seen from outside while it lasted: cpu at {LINE} (/orders), in 3 looks.")


def test_what_is_known_only_since_is_not_said_to_have_been_seen_meanwhile() -> None:
    """A short freeze may be over before anybody asks."""
    ((told, (said, outside)),) = watched(
        [Freeze("accept", [], None, stall(duration_s=0.25, outside=look(1)))]
    )
    assert not told
    assert said.endswith("still for 250 ms. /metrics said nothing of it while it lasted.")
    assert outside == f"Seen from outside: cpu at {LINE} (/orders), in 1 look."


def test_a_refusal_is_told_with_the_kernels_reason() -> None:
    """Nobody may look: then it is said what to grant."""
    refused = stall(outside=look(0), evidence={"refused": "grant SYS_PTRACE"})
    ((_, (_, outside)),) = watched([Freeze("accept", [], refused, None)])
    assert outside == "Not seen from outside: grant SYS_PTRACE."


def test_a_thread_that_has_the_interpreter_is_named_with_its_line() -> None:
    """And the loop's own line is not."""
    words = seen_from_outside(stall(route="", outside=THREAD))
    assert words == f"thread restock had the interpreter, at {LINE}, in 1 look"


def test_places_say_how_many_stalls_were_seen_from_outside() -> None:
    """Stalls of the same place and cause are counted, and a thread that caused them is named."""
    group = {
        "location": "", "cause": "gil_contention", "routes": [],
        "stalls": 3, "seconds": 0.8, "lost_request_seconds": 0.1,
    }  # fmt: skip
    seen = stall(location="", cause="gil_contention", outside=THREAD)
    other = stall(outside=look())
    (said,) = stall_remarks([group], [seen, {**seen, "outside": None}, other])
    assert said.endswith(f"lost; 1 seen from outside, thread restock at {LINE}.")
    (alone,) = stall_remarks([group])
    assert alone.endswith("request-seconds lost.")


SENTINEL = """\
loopscope_sentinel_resident_memory_bytes 41943040.0
# TYPE loopscope_sentinel_cpu_seconds counter
loopscope_sentinel_cpu_seconds_total 0.2
# TYPE loopscope_sentinel_looks counter
loopscope_sentinel_looks_total{outcome="seen"} 4.0
loopscope_sentinel_looks_total{outcome="late"} 1.0
"""


def test_the_sentinel_has_a_line_where_there_is_one() -> None:
    """Its memory, its share of a CPU, and what came of its looks."""
    (said,) = sentinel(between(Scrape(0.0, {}), parse(SENTINEL, at=10.0)))
    assert said.endswith(": 40 MiB, 2.0% of one CPU, 5 looks (1 late, 4 seen).")
    assert not list(sentinel(between(Scrape(0.0, {}), parse("x 9\n", at=10.0))))
