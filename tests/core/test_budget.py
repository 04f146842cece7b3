"""The series budget: detail is given up at the limit, totals never."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from loopscope.core.budget import OVERFLOW, Budget


class Tally:
    """A value that counts: what a series is to a budget."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0


class Maker:
    """Makes tallies and remembers what it was asked for; out of room beyond ``room``."""

    def __init__(self, room: int = 1_000) -> None:
        self.made: list[str] = []
        self._room = room

    def __call__(self, name: str = OVERFLOW) -> Tally | None:
        if len(self.made) == self._room:
            return None
        self.made.append(name)
        return Tally(name)


@given(st.integers(0, 5), st.lists(st.sampled_from("abcdefgh")))
def test_totals_stay_right_whatever_is_folded(limit: int, keys: list[str]) -> None:
    """The first ``limit`` keys count for themselves, all others together in the overflow."""
    maker = Maker()
    budget: Budget[str, Tally] = Budget(limit, maker, maker)
    for key in keys:
        value = budget.admit(key)
        assert value is not None
        value.count += 1
    own = list(dict.fromkeys(keys))[:limit]
    assert {key: value.count for key, value in budget.known.items()} == {
        key: Counter(keys)[key] for key in own
    }
    assert budget.folded == sum(key not in own for key in keys)


def test_values_are_made_once() -> None:
    """One value a key and one overflow, however often they are asked for."""
    maker = Maker()
    budget: Budget[str, Tally] = Budget(2, maker, maker)
    values = [budget.admit(key) for key in "abcdabcd"]
    assert maker.made == ["a", "b", OVERFLOW]
    assert values[:4] == values[4:]
    assert values[2] is values[3]


def test_no_overflow_is_made_before_it_is_needed() -> None:
    """An overflow series appears only once something was folded."""
    maker = Maker()
    budget: Budget[str, Tally] = Budget(2, maker, maker)
    budget.admit("a")
    budget.admit("b")
    assert OVERFLOW not in maker.made
    assert budget.folded == 0


def test_where_there_is_no_room_a_key_is_folded_below_the_limit_already() -> None:
    """A full page ends the budget early; what could not be made is not remembered as known."""
    maker, spare = Maker(room=1), Maker()
    budget: Budget[str, Tally] = Budget(9, maker, spare)
    budget.admit("a")
    folded = budget.admit("b")
    assert folded is not None
    assert folded.name == OVERFLOW
    assert list(budget.known) == ["a"]


def test_without_room_for_an_overflow_there_is_no_value() -> None:
    """None tells the caller to go without; it is asked again and counted each time."""
    nothing = Maker(room=0)
    budget: Budget[str, Tally] = Budget(9, nothing, nothing)
    assert budget.admit("a") is None
    assert budget.admit("a") is None
    assert budget.folded == 2


def test_what_is_forgotten_is_made_anew_in_place() -> None:
    """Whoever holds ``known`` sees it empty; keys and overflow have to be made again."""
    maker = Maker()
    budget: Budget[str, Tally] = Budget(1, maker, maker)
    known = budget.known
    budget.admit("a")
    budget.admit("b")
    budget.forget()
    assert known == {}
    budget.admit("b")
    budget.admit("a")
    assert maker.made == ["a", OVERFLOW, "b", OVERFLOW]
