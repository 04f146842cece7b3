"""What was to be seen of the shop while it stood still, and that in sentences. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo_app.scrape import Window, parse
from demo_app.table import milliseconds

_HELD = "asyncio_eventloop_stall_in_progress_seconds"
_MEBI = 1024 * 1024
_SHORT = 1.0


@dataclass(frozen=True)
class Answer:
    """One answer of ``/metrics``: how long it took, and for how long it says the loop is held."""

    took_s: float
    held_s: float

    @classmethod
    def of(cls, text: str, took_s: float) -> Answer:
        """The answer whose body is ``text``."""
        # The rest is not looked at, and takes longer to parse than a freeze lasts.
        told = "\n".join(line for line in text.splitlines() if line.startswith(_HELD))
        samples = parse(f"{told}\n", 0.0).samples.get(_HELD, {})
        return cls(took_s, max(samples.values(), default=0.0))


@dataclass(frozen=True)
class Freeze:
    """One fault that stopped the shop: what was answered while it did, and what is known since."""

    fault: str
    answers: Sequence[Answer]
    """Those in which the loop was held."""
    meanwhile: Mapping[str, Any] | None
    """The latest that ``/api/stalls`` said of it while it lasted."""
    afterwards: Mapping[str, Any] | None
    """The same once it was over."""


def watched(freezes: Iterable[Freeze]) -> Iterator[tuple[bool, list[str]]]:
    """Of each whether anybody could tell while it lasted, and what there is to say."""
    for freeze in freezes:
        yield bool(freeze.answers), [_answered(freeze), *_from_outside(freeze)]


def _answered(freeze: Freeze) -> str:
    over = freeze.afterwards
    lasted = f"the shop stood still for {_seconds(over['duration_s'])}" if over else "no stall"
    if not freeze.answers:
        return f"{freeze.fault}: {lasted}. /metrics said nothing of it while it lasted."
    slowest = milliseconds(max(answer.took_s for answer in freeze.answers))
    held = _seconds(max(answer.held_s for answer in freeze.answers))
    return (
        f"{freeze.fault}: {lasted}. /metrics answered {len(freeze.answers)} x meanwhile, within "
        f"{slowest} ms, and said at last: held for {held}."
    )


def _from_outside(freeze: Freeze) -> Iterator[str]:
    for stall, when in ((freeze.meanwhile, "while it lasted"), (freeze.afterwards, "")):
        words = "" if stall is None else seen_from_outside(stall)
        if words:
            yield f"Seen from outside{f' {when}' if when else ''}: {words}."
            return
    refused = (freeze.meanwhile or {}).get("evidence", {}).get("refused")
    yield f"Not seen from outside{f': {refused}' if refused else ''}."


def seen_from_outside(stall: Mapping[str, Any]) -> str:
    """What another process saw of a stall (as ``/api/stalls`` lists it); nothing if it did not."""
    seen = stall["outside"]
    if not seen or not seen["looks"]:
        return ""
    looks = f"{seen['looks']} look{'' if seen['looks'] == 1 else 's'}"
    if seen["thread"]:
        what = f"thread {seen['thread']} had the interpreter, at {seen['thread_location']}"
    else:
        what = f"{seen['cause'].replace('_', ' ')} at {seen['location'] or seen['leaf']}"
    route = f" ({stall['route']})" if stall["route"] else ""
    return f"{what}{route}, in {looks}"


def sentinel(window: Window) -> Iterator[str]:
    """What watching from outside has cost and come to, where there was a sentinel."""
    memory = window.values("loopscope_sentinel_resident_memory_bytes").get(())
    if memory is None:
        return
    share = window.total("loopscope_sentinel_cpu_seconds_total") / window.seconds
    looks = window.sums("loopscope_sentinel_looks_total", "outcome")
    outcomes = ", ".join(f"{count:,.0f} {outcome}" for (outcome,), count in sorted(looks.items()))
    yield (
        f"The sentinel, which looks from outside: {memory / _MEBI:.0f} MiB, {share:.1%} of one "
        f"CPU, {sum(looks.values()):,.0f} looks{f' ({outcomes})' if outcomes else ''}."
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= _SHORT else f"{milliseconds(seconds)} ms"
