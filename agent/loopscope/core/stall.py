"""One stall of an event loop: what the watchdog finds out and everybody else tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

Order = Literal["newest", "longest", "lost"]
ORDERS: tuple[str, ...] = get_args(Order)


@dataclass(slots=True)
class Stall:
    """One stall, over or still going on. Times in seconds; ``started_at`` is Unix time."""

    id: str
    started_at: float
    duration_s: float
    cause: str = "unknown"
    location: str = ""
    """File, line and function of the service that held the loop; empty where none is to blame."""
    label: str = ""
    """The location without its line."""
    leaf: str = ""
    """Where the deepest frame was, whosever it is."""
    route: str = ""
    method: str = ""
    task: str = ""
    trace_id: str = ""
    worker: str = ""
    in_progress: bool = False
    is_estimate: bool = False
    """Whether the duration is inferred from a late heartbeat, good to half a beat."""
    victims: Mapping[tuple[str, str], tuple[int, float]] = field(
        default_factory=dict[tuple[str, str], tuple[int, float]]
    )
    """By route and method: how many requests had to wait, and their seconds."""
    stacks: tuple[tuple[tuple[str, ...], float], ...] = ()
    """Stacks seen, outermost frame first, each with the seconds it stands for."""
    evidence: Mapping[str, float | int | str] = field(default_factory=dict[str, float | int | str])
    outside: Mapping[str, Any] | None = None
    """What another process saw of it: see ``loopscope.sentinel.view``."""

    @property
    def lost(self) -> float:
        """Request-seconds lost by those that had to wait."""
        return sum(seconds for _, seconds in self.victims.values())


def as_json(stall: Stall) -> dict[str, Any]:
    """``stall`` as ``/api/stalls`` shows it; the keys are a contract that is only ever extended.

    ``cut_short``: the worker was gone before the stall was over, which is all that is known of it.
    """
    return {
        "id": stall.id,
        "started_at": stall.started_at,
        "duration_s": stall.duration_s,
        "in_progress": stall.in_progress,
        "cut_short": False,
        "is_estimate": stall.is_estimate,
        "cause": stall.cause,
        "location": stall.location,
        "leaf": stall.leaf,
        "route": stall.route,
        "method": stall.method,
        "task": stall.task,
        "trace_id": stall.trace_id,
        "worker": stall.worker,
        "victims": {
            "requests": sum(requests for requests, _ in stall.victims.values()),
            "seconds": stall.lost,
            "by_route": _by_route(stall),
        },
        "stacks": [{"frames": list(frames), "seconds": s} for frames, s in stall.stacks],
        "evidence": dict(stall.evidence),
        "outside": None if stall.outside is None else dict(stall.outside),
    }


def _by_route(stall: Stall) -> dict[str, dict[str, float]]:
    routes: dict[str, dict[str, float]] = {}
    for (route, _), (requests, seconds) in stall.victims.items():
        known = routes.setdefault(route, {"requests": 0, "seconds": 0.0})
        known["requests"] += requests
        known["seconds"] += seconds
    return routes


_SHAPE = as_json(Stall("", 0.0, 0.0))


def told(notes: Iterable[Mapping[str, Any]], *, alive: bool, now: float) -> list[dict[str, Any]]:
    """The stalls that a worker's ``notes`` tell of, as ``as_json`` shows them, oldest first.

    The latest word on a stall counts. One that is not over goes on at ``now``, Unix seconds, where
    the worker is ``alive``, and was cut short where it is not.
    """
    stalls = {note["id"]: {**_SHAPE, **note} for note in notes if _is_stall(note)}
    for stall in stalls.values():
        if stall["in_progress"] and alive:
            stall["duration_s"] = max(stall["duration_s"], now - stall["started_at"])
        elif stall["in_progress"]:
            stall.update(in_progress=False, cut_short=True)
    return list(stalls.values())


def _is_stall(note: Mapping[str, Any]) -> bool:
    """Whether a note has what readers rely on, whatever else it has: files may be anybody's."""
    known = {name: value for name, value in note.items() if name in _SHAPE}
    same = all(isinstance(value, _like(_SHAPE[name])) for name, value in known.items())
    victims: Any = note.get("victims", _SHAPE["victims"])
    return same and {"id", "started_at", "duration_s"} <= known.keys() and _are_victims(victims)


def _are_victims(victims: Any) -> bool:
    return isinstance(victims, dict) and isinstance(
        cast("dict[str, Any]", victims).get("seconds"), int | float
    )


def _like(value: object) -> Any:
    if isinstance(value, float):
        return int | float
    return (dict, type(None)) if value is None else type(value)


def joined(stalls: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """``stalls`` with what was seen of one from outside put into the worker's own record of it.

    What was seen of which the worker tells nothing, because it still hangs or is dead, stands for
    itself.
    """
    own: dict[str, list[dict[str, Any]]] = {}
    outside: list[dict[str, Any]] = []
    for stall in stalls:
        if stall["outside"] is None:
            own.setdefault(stall["worker"], []).append(stall)
        else:
            outside.append(stall)
    alone = [seen for seen in outside if not _join(seen, own.get(seen["worker"], ()))]
    return [stall for worker in own.values() for stall in worker] + alone


def _join(seen: dict[str, Any], own: Iterable[dict[str, Any]]) -> bool:
    """Put what was ``seen`` into the one of a worker's ``own`` that it is about, if any is."""
    stall = max(own, key=lambda each: _overlap(seen, each), default=None)
    if stall is None:
        return False
    shorter = min(seen["duration_s"], stall["duration_s"])
    if _overlap(seen, stall) < _SAME * shorter:
        return False
    stall["outside"] = seen["outside"]
    if _is_seen_better(seen, stall):
        stall.update({name: seen[name] for name in ("cause", "location", "leaf")})
    if stall["cause"] == seen["cause"]:
        stall.update({name: stall[name] or seen[name] for name in ("route", "location")})
        # Of a thread that keeps the interpreter the worker sees what it does next.
        stall["evidence"] = {**stall["evidence"], **seen["evidence"]}
    if stall["in_progress"]:
        stall["duration_s"] = max(stall["duration_s"], seen["duration_s"])
    return True


_SAME = 0.5
"""Two records of one worker that have so much of the shorter one in common are of one stall."""
_CERTAINTY = {"unknown": 0, "starved": 1, "gil_contention": 1}
"""Of causes that are seen better from outside; all others are 2."""


def _is_seen_better(seen: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether what was ``seen`` from outside is to be believed where a worker's ``own`` differs.

    While its own thread keeps the interpreter, a worker sees nothing but what came afterwards.
    """
    if seen["cause"] == own["cause"] == "blocking_call":
        return bool(seen["location"] and seen["outside"].get("keeps_gil"))
    return _CERTAINTY.get(seen["cause"], 2) > _CERTAINTY.get(own["cause"], 2)


def _overlap(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Seconds that two stalls have in common; negative where they are apart."""
    ends = [each["started_at"] + each["duration_s"] for each in (one, other)]
    return float(min(ends) - max(one["started_at"], other["started_at"]))


def in_order(
    stalls: Iterable[dict[str, Any]], order: Order, limit: int = 100
) -> list[dict[str, Any]]:
    """``stalls`` as ``as_json`` shows them, those in progress first, at most ``limit``."""

    def key(stall: Mapping[str, Any]) -> tuple[bool, float]:
        by = {"newest": "started_at", "longest": "duration_s"}.get(order)
        return stall["in_progress"], stall[by] if by else stall["victims"]["seconds"]

    return sorted(stalls, key=key, reverse=True)[:limit]
