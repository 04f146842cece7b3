"""A profile of blocking time only: where the event loop stood still, weighted by how long it did.

A profile of everything buries a stall in hours of idling; here every second is one that all
requests of a worker lost. It is published in the two formats that flame graph tools share:
Brendan Gregg's folded stacks (flamegraph.pl, inferno, speedscope) and speedscope's own.

The number of stacks is bounded. Turning new ones away would keep whatever a service did first, so
a full profile instead folds its smaller half into one `OTHER` stack: a stall that comes late but
often outgrows those of its past, and the total stays right to the second.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from heapq import nsmallest
from typing import Final, TypeAlias

OTHER: Final = "[other]"
"""The stack of everything that was folded."""

UNKNOWN: Final = "[unknown]"
"""The frame of a stack without any, and of a frame without a name."""

_Key: TypeAlias = tuple[str, tuple[str, ...]]
_OVERFLOW: Final[_Key] = (OTHER, (OTHER,))

_SCHEMA: Final = "https://www.speedscope.app/file-format-schema.json"


class BlockingProfile:
    """Seconds by root label (a route, say) and stack; at most ``limit`` stacks and `OTHER`.

    One thread adds, any may read: additions are made to a dictionary that readers copy in one
    step, and folding builds a new one.
    """

    def __init__(self, limit: int = 1000) -> None:
        if limit < 1:
            raise ValueError(f"a profile holds at least one stack, not {limit}")
        self._limit = limit
        self._seconds: dict[_Key, float] = {}
        self._folded = 0

    def __len__(self) -> int:
        """How many stacks are told apart."""
        return len(self._seconds) - (_OVERFLOW in self._seconds)

    @property
    def dropped(self) -> int:
        """How many times a stack was folded into `OTHER`."""
        return self._folded

    @property
    def seconds(self) -> float:
        """The blocking time of all stacks together."""
        return sum(self._seconds.copy().values())

    def add(self, stack: tuple[str, ...], seconds: float, root: str = "") -> None:
        """Count ``seconds`` for ``stack``, descriptions of frames, outermost first."""
        if not seconds > 0:
            return
        key = (root, stack or (UNKNOWN,))
        known = self._seconds.get(key)
        if known is None and len(self) >= self._limit:
            self._fold()
        self._seconds[key] = (known or 0.0) + seconds

    def folded(self) -> str:
        """One line a stack, ``root;outermost;…;innermost 1500``: integer microseconds.

        The format knows no escapes. As Brendan Gregg's own converters do, a semicolon in a name
        becomes a colon; line breaks become spaces. What rounds to nothing has no line.
        """
        lines = list[str]()
        for (root, stack), seconds in self._sorted():
            microseconds = round(seconds * 1e6)
            names = (root, *stack) if root and (root, stack) != _OVERFLOW else stack
            if microseconds:
                lines.append(f"{';'.join(map(_one_field, names))} {microseconds}\n")
        return "".join(lines)

    def speedscope(self, name: str) -> dict[str, object]:
        """A file for speedscope.app, ready for ``json.dumps``: a profile a root, largest first.

        Stacks without a root are in a profile called ``name``, as is all that is in the file.
        """
        frames: dict[str, int] = {}
        by_root: defaultdict[str, list[tuple[list[int], float]]] = defaultdict(list)
        for (root, stack), seconds in self._sorted():
            sample = [frames.setdefault(frame or UNKNOWN, len(frames)) for frame in stack]
            by_root[root or name].append((sample, seconds))
        profiles = [_sampled(root, samples) for root, samples in by_root.items()]
        profiles.sort(key=lambda profile: -profile[0])
        return {
            "$schema": _SCHEMA,
            "exporter": "loopscope",
            "name": name,
            "activeProfileIndex": 0,
            "shared": {"frames": [{"name": frame} for frame in frames]},
            # the viewer has nothing to open in a file without profiles
            "profiles": [profile for _, profile in profiles or [_sampled(name, [])]],
        }

    def stacks(self) -> list[tuple[str, tuple[str, ...], float]]:
        """Root, stack and seconds of all there is."""
        return [(root, stack, seconds) for (root, stack), seconds in self._sorted()]

    def _sorted(self) -> list[tuple[_Key, float]]:
        """All stacks, those that begin alike together: viewers draw them as one frame."""
        return sorted(self._seconds.copy().items())

    def _fold(self) -> None:
        """Make room for half as many stacks again."""
        kept = self._seconds.copy()
        other = kept.pop(_OVERFLOW, 0.0)
        least = nsmallest((len(kept) + 1) // 2, kept, key=kept.__getitem__)
        other += sum([kept.pop(key) for key in least])
        kept[_OVERFLOW] = other
        self._folded += len(least)
        self._seconds = kept


RUNNING: Final = "[running on the event loop]"
UNSEEN: Final = "[short waits]"
IN_TASKS: Final = "[in tasks]"
UNTOLD: Final = "[workers that have ended or do not answer]"

_MOST_WALL_STACKS: Final = 5000


def wall_clock(
    waits: Iterable[tuple[str, bool, tuple[str, ...], float]],
    blocking: Iterable[tuple[str, tuple[str, ...], float]],
    running: Mapping[str, float],
    total: Mapping[str, float],
) -> BlockingProfile:
    """Where the time of requests went, running and awaiting in one picture, a root a route.

    ``waits`` are route, whether it was a task that waited, stack and seconds; ``blocking`` route,
    stack and seconds of what held the loop for long. ``running`` and ``total`` are all seconds by
    route. Tasks may wait at one time, so what they waited for comes on top of the total.
    """
    profile = BlockingProfile(_MOST_WALL_STACKS)
    left = dict(total)
    ran = dict(running)
    for route, is_task, stack, seconds in waits:
        profile.add((IN_TASKS, *stack) if is_task else stack, seconds, route)
        left[route] = left.get(route, 0.0) - (0.0 if is_task else seconds)
    for route, stack, seconds in blocking:
        known = min(seconds, ran.get(route, 0.0))
        profile.add((RUNNING, *stack), known, route)
        ran[route] = ran.get(route, 0.0) - known
    for route, seconds in ran.items():
        profile.add((RUNNING,), seconds, route)
    for route, seconds in left.items():
        profile.add((UNSEEN,), seconds - running.get(route, 0.0), route)
    return profile


def _one_field(name: str) -> str:
    return " ".join(name.replace(";", ":").splitlines()) or UNKNOWN


def _sampled(
    name: str, samples: Sequence[tuple[list[int], float]]
) -> tuple[float, dict[str, object]]:
    """The seconds of a profile, and the profile."""
    stacks = [stack for stack, _ in samples]
    weights = [seconds for _, seconds in samples]
    total = sum(weights)
    return total, {
        "type": "sampled",
        "name": name,
        "unit": "seconds",
        "startValue": 0,
        "endValue": total,
        "samples": stacks,
        "weights": weights,
    }
