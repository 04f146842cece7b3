"""The profile of blocking time: bounded, its total true, readable by flame graph tools."""

from __future__ import annotations

import json
import math
import re
import sys
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopscope.exporters.profile import OTHER, UNKNOWN, BlockingProfile

BUILD = ("app/views.py:12 report", "app/report.py:41 build")
SLEEP = ("app/views.py:30 nap",)

NAMES = st.text(max_size=5)
ADDITIONS = st.lists(
    st.tuples(st.lists(NAMES, max_size=3).map(tuple), st.floats(0, 100), NAMES), max_size=30
)


def profile_of(
    *additions: tuple[tuple[str, ...], float, str], limit: int = 1000
) -> BlockingProfile:
    profile = BlockingProfile(limit)
    for stack, seconds, root in additions:
        profile.add(stack, seconds, root)
    return profile


def is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(float(value))  # type: ignore[arg-type]


def check_speedscope(file: Any) -> None:
    """What https://www.speedscope.app/file-format-schema.json demands of a sampled profile."""
    assert file.keys() <= {
        "$schema",
        "exporter",
        "name",
        "activeProfileIndex",
        "shared",
        "profiles",
    }
    assert file["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    assert isinstance(file["exporter"], str)
    assert isinstance(file["name"], str)
    frames = file["shared"]["frames"]
    assert all(frame.keys() == {"name"} and isinstance(frame["name"], str) for frame in frames)
    assert 0 <= file["activeProfileIndex"] < len(file["profiles"])
    for profile in file["profiles"]:
        assert profile.keys() == {
            "type", "name", "unit", "startValue", "endValue", "samples", "weights",
        }  # fmt: skip
        assert profile["type"] == "sampled"
        assert profile["unit"] == "seconds"
        assert isinstance(profile["name"], str)
        assert len(profile["samples"]) == len(profile["weights"])
        assert all(is_number(weight) and weight >= 0 for weight in profile["weights"])
        assert is_number(profile["startValue"])
        assert profile["endValue"] >= profile["startValue"]
        for sample in profile["samples"]:
            assert sample
            assert all(type(index) is int and 0 <= index < len(frames) for index in sample)


def speedscope(profile: BlockingProfile, name: str = "shop") -> Any:
    """The file as a viewer reads it, found to be valid."""
    file = json.loads(json.dumps(profile.speedscope(name), allow_nan=False))
    check_speedscope(file)
    return file


def names_in(file: Any, profile: Any) -> list[list[str]]:
    frames = [frame["name"] for frame in file["shared"]["frames"]]
    return [[frames[index] for index in sample] for sample in profile["samples"]]


# adding


def test_time_adds_up_by_stack_and_root() -> None:
    """The same line blocks on behalf of two routes: two entries."""
    profile = profile_of((BUILD, 0.5, "/a"), (BUILD, 0.25, "/a"), (BUILD, 1.0, "/b"))
    assert len(profile) == 2
    assert profile.seconds == 1.75
    assert profile.folded().splitlines() == [
        "/a;app/views.py:12 report;app/report.py:41 build 750000",
        "/b;app/views.py:12 report;app/report.py:41 build 1000000",
    ]


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan])
def test_no_time_is_no_entry(seconds: float) -> None:
    """A stall that lasted nothing takes no one's place."""
    assert len(profile_of((BUILD, seconds, "/a"))) == 0


@given(ADDITIONS, st.integers(1, 5))
def test_folding_bounds_the_stacks_and_loses_no_time(
    additions: list[tuple[tuple[str, ...], float, str]], limit: int
) -> None:
    """At most ``limit`` stacks are told apart, and the total is that of all additions."""
    profile = profile_of(*additions, limit=limit)
    assert len(profile) <= limit
    assert profile.seconds == pytest.approx(sum(seconds for _, seconds, _ in additions))


def test_a_full_profile_folds_its_lesser_stacks() -> None:
    """What blocks most keeps its name; what was folded is one stack, and counted."""
    heavy = [((f"heavy{number}",), 10.0, "") for number in range(4)]
    light = [((f"light{number}",), 0.25, "") for number in range(100)]
    profile = profile_of(*heavy[:2], *light[:50], *heavy[2:], *light[50:], limit=10)
    lines = dict(line.rsplit(" ", 1) for line in profile.folded().splitlines())
    assert {f"heavy{number}": lines.get(f"heavy{number}") for number in range(4)} == {
        f"heavy{number}": "10000000" for number in range(4)
    }
    assert profile.dropped == 104 - len(profile)
    assert int(lines[OTHER]) == 250_000 * profile.dropped


def test_a_late_stall_that_comes_often_makes_its_way_into_a_full_profile() -> None:
    """Last week's stalls do not hold the places for good."""
    profile = profile_of(*(((f"old{number}",), 1.0, "") for number in range(10)), limit=10)
    for number in range(100):
        profile.add(("late",), 0.5)
        profile.add((f"rare{number}",), 0.1)
    assert "late 50000000\n" in profile.folded()


def test_a_profile_without_room_is_refused() -> None:
    """Everything would be called other."""
    with pytest.raises(ValueError, match="at least one"):
        BlockingProfile(0)


def test_readers_see_whole_profiles_while_one_writer_adds() -> None:
    """No reader fails, and none sees time vanish while stacks are folded."""
    profile = BlockingProfile(50)
    seen: list[float] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                seen.append(profile.seconds)
                profile.folded()
                speedscope(profile)
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    reader = threading.Thread(target=read)
    try:
        reader.start()
        for number in range(20_000):
            profile.add((f"frame{number % 70}",), 1.0)
    finally:
        done.set()
        reader.join()
        sys.setswitchinterval(interval)
    assert not failures
    assert seen == sorted(seen)
    assert profile.seconds == 20_000


# folded stacks


@given(ADDITIONS)
def test_every_folded_line_is_what_flame_graph_tools_parse(
    additions: list[tuple[tuple[str, ...], float, str]],
) -> None:
    """Frames, a space, an integer; as many frames as the stack has, and its root."""
    profile = profile_of(*additions)
    keys = [key for key, seconds in profile._sorted() if round(seconds * 1e6)]
    lines = profile.folded().splitlines()
    assert len(lines) == len(keys)
    for line, (root, stack) in zip(lines, keys, strict=True):
        match = re.fullmatch(r"(.+) ([1-9]\d*)", line)
        assert match is not None
        assert len(match[1].split(";")) == len(stack) + bool(root)


def test_a_name_cannot_break_the_format() -> None:
    """Semicolons divide frames and line breaks stacks, so names have neither."""
    profile = profile_of((("a;b.py:1 f", "c\nd\re.py:2 g", ""), 1.0, "GET /x;y"))
    assert profile.folded() == f"GET /x:y;a:b.py:1 f;c d e.py:2 g;{UNKNOWN} 1000000\n"


def test_without_stalls_there_is_nothing_to_fold() -> None:
    """An empty file, which every tool understands."""
    assert BlockingProfile().folded() == ""


# speedscope


def test_each_root_is_a_profile_of_its_own_the_worst_first() -> None:
    """A viewer opens on the route that blocked longest."""
    file = speedscope(profile_of((SLEEP, 1.0, "/nap"), (BUILD, 0.5, "/a"), (SLEEP, 2.0, "/a")))
    assert [profile["name"] for profile in file["profiles"]] == ["/a", "/nap"]
    worst = file["profiles"][0]
    assert names_in(file, worst) == [list(BUILD), list(SLEEP)]
    assert worst["weights"] == [0.5, 2.0]
    assert worst["endValue"] == 2.5


def test_a_frame_is_named_once_in_a_file() -> None:
    """Routes share their frames."""
    file = speedscope(profile_of((BUILD, 1.0, "/a"), (BUILD, 1.0, "/b")))
    assert [frame["name"] for frame in file["shared"]["frames"]] == list(BUILD)


def test_stacks_without_a_root_are_in_a_profile_named_like_the_file() -> None:
    """Also what was folded, which is nobody's."""
    file = speedscope(profile_of((BUILD, 1.0, ""), (SLEEP, 2.0, ""), limit=1))
    assert {profile["name"] for profile in file["profiles"]} == {"shop", OTHER}


def test_a_file_without_stalls_still_opens() -> None:
    """One empty profile rather than none."""
    assert [profile["samples"] for profile in speedscope(BlockingProfile())["profiles"]] == [[]]


@given(ADDITIONS, st.integers(1, 5))
def test_every_speedscope_file_is_valid_and_complete(
    additions: list[tuple[tuple[str, ...], float, str]], limit: int
) -> None:
    """Whatever names there are, and all of the time."""
    profile = profile_of(*additions, limit=limit)
    profiles = speedscope(profile)["profiles"]
    assert sum(each["endValue"] for each in profiles) == pytest.approx(profile.seconds)
