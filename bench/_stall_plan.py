"""What stalls.py is going to play, in which order, and how long that takes."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from _stall_kinds import KINDS
from _stall_loop_kinds import LOOP_KINDS

ALL_KINDS = tuple(kind.key for kind in (*KINDS, *LOOP_KINDS))
HELD_KINDS = ("sleep", "python", "gil-tail", "gil-thief")
"""Held for seconds while the tool is asked: GIL released, shared, held, and held by a thread."""
EXTRA_KINDS = ("sleep", "python", "regex")
"""Played in the extra durations as well."""
_ON_THE_LOOP = frozenset(kind.key for kind in LOOP_KINDS)
_PHASE_S = 0.1
"""Longer than any heartbeat: where in a beat a stall begins is left to chance."""
_START_S = 5.0
_TAIL_S = 0.05


@dataclass(frozen=True)
class Stall:
    """One stall to be played."""

    turn: int
    """How many of the same kind and duration come before it in the plan's making."""
    kind: str
    placement: str
    wanted_s: float
    phase_s: float


@dataclass(frozen=True)
class Shape:
    """Of what a plan is drawn. Durations are seconds."""

    kinds: Sequence[str]
    placements: Sequence[str]
    durations: Sequence[float]
    extra_durations: Sequence[float]
    seed: int

    def draw(self, times: int) -> list[Stall]:
        """Every kind and duration `times` times, in turn in each place, in a drawn order.

        The extra durations come half as often, and with `EXTRA_KINDS` only. Of two plans of one
        shape, the shorter has the same stalls in the same order as the longer, less some.
        """
        drawn: list[tuple[float, Stall]] = []
        for number, kind in enumerate(self.kinds):
            extra = self.extra_durations if kind in EXTRA_KINDS else ()
            for place, duration in enumerate((*self.durations, *extra)):
                chance = random.Random(f"{self.seed} {kind} {duration}")
                count = times if place < len(self.durations) else (times + 1) // 2
                for turn in range(count):
                    at, phase = chance.random(), chance.uniform(0, _PHASE_S)
                    where = self._placement(kind, number + place + turn)
                    drawn.append((at, Stall(turn, kind, where, duration, phase)))
        return [stall for _, stall in sorted(drawn, key=lambda pair: pair[0])]

    def _placement(self, kind: str, turn: int) -> str:
        return "loop" if kind in _ON_THE_LOOP else self.placements[turn % len(self.placements)]


def seconds_for(plan: Iterable[Stall], settle_s: float) -> float:
    """How long a worker takes for its start and these stalls, about."""
    return _START_S + sum(stall.phase_s + stall.wanted_s + settle_s + _TAIL_S for stall in plan)
