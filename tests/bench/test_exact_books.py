"""What the benchmark of exact totals takes for exact, for knowable, and for wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from _exact_books import Line, compare, read, shrunk
from _exact_kinds import COUNT, LEFT, NOWHERE, Sample, amounts, answer_bytes, kind_of, sample, wire
from _exact_witness import Witness, seen

NUMBERS = range(1, 1001)
ECHOED = sample(
    "http_server_request_body_size_bytes_sum",
    {"http_route": "/echo", "http_request_method": "POST"},
)


def by_sample(published: Counter[Sample], *unknowable: int) -> dict[Sample, Line]:
    """The lines for requests that were all recorded but for `unknowable`."""
    recorded = set(NUMBERS) - set(unknowable)
    return {line.sample: line for line in compare(published, recorded, unknowable)}


def test_what_is_as_it_should_be_is_exact() -> None:
    """Every request recorded, and nothing else published."""
    lines = by_sample(amounts(NUMBERS))
    assert all(line.holds and line.is_exact for line in lines.values())
    counts = [line.published for (name, _), line in lines.items() if name == COUNT]
    assert sum(counts) == len(NUMBERS)


def test_one_byte_more_is_wrong() -> None:
    """And in that sample only."""
    published = amounts(NUMBERS)
    published[ECHOED] += 1
    assert [each for each, line in by_sample(published).items() if not line.holds] == [ECHOED]


def test_a_sample_that_should_not_be_there_is_wrong() -> None:
    """As is one that is missing."""
    published = amounts(NUMBERS)
    del published[ECHOED]
    stranger = sample(COUNT, {"http_route": "/other"})
    published[stranger] += 1
    wrong = [each for each, line in by_sample(published).items() if not line.holds]
    assert sorted(wrong) == sorted([ECHOED, stranger])


@pytest.mark.parametrize("counted", [True, False])
def test_what_a_killed_worker_had_in_hand_may_be_counted_or_not(counted: bool) -> None:
    """Its samples have bounds, all others have none."""
    in_hand = next(number for number in NUMBERS if kind_of(number) is NOWHERE)
    published = amounts(NUMBERS if counted else set(NUMBERS) - {in_hand})
    lines = by_sample(published, in_hand)
    assert all(line.holds for line in lines.values())
    assert {each for each, line in lines.items() if not line.is_exact} == set(amounts([in_hand]))


def test_an_exposition_is_read_without_what_is_left_out() -> None:
    """Other metrics, zeros and the route nobody counts are not compared."""
    name = "loopscope_request_outcomes_total"
    labels = 'http_request_method="GET",outcome="ok"'
    text = "\n".join(
        [
            f"# TYPE {name} counter",
            f'{name}{{http_route="/a",{labels}}} 3.0',
            f'{name}{{http_route="/b",{labels}}} 0.0',
            f'{name}{{http_route="/ready",{labels}}} 5.0',
            "# TYPE other_total counter",
            "other_total 7.0",
        ]
    )
    found = read(text + "\n", "/ready")
    expected = {"http_route": "/a", "http_request_method": "GET", "outcome": "ok"}
    assert found == {sample(name, expected): 3}


def test_a_total_that_shrinks_or_vanishes_is_seen() -> None:
    """Growing ones and new ones are as they should be."""
    before: Counter[Sample] = Counter({("less", ()): 2, ("gone", ()): 1, ("more", ()): 1})
    now: Counter[Sample] = Counter({("less", ()): 1, ("more", ()): 2, ("new", ()): 1})
    assert shrunk(before, now) == [("less", ()), ("gone", ())]


def test_a_request_has_its_number_and_the_body_it_is_counted_with() -> None:
    """What goes over the wire is what the books say."""
    for number in NUMBERS:
        head, _, body = wire(number, keep=True).partition(b"\r\n\r\n")
        assert f"x-number: {number}".encode() in head
        assert f"Content-Length: {len(body)}".encode() in head
        if kind_of(number).method == "POST":
            assert len(body) == answer_bytes(number)


def test_some_clients_leave() -> None:
    """One kind of requests in a hundred."""
    assert [number for number in NUMBERS if kind_of(number) is LEFT][:2] == [101, 202]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_witness_sees_requests_come_and_go(tmp_path: Path) -> None:
    """Those that were not done when somebody looked have only come; some have no number."""
    looks: list[tuple[set[int], set[int]]] = []

    async def app(scope: object, receive: object, send: object) -> None:
        looks.append(seen(tmp_path))

    witness = Witness(app, tmp_path)
    for headers in ([(b"x-number", b"7")], []):
        await witness({"type": "http", "headers": headers}, None, None)  # type: ignore[arg-type]
    assert looks == [({7}, set()), ({7}, {7})]
    assert seen(tmp_path) == ({7}, {7})
