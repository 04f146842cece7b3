"""One stall of an event loop: what the watchdog finds out and everybody else tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

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
    return isinstance(victims, dict) and isinstance(victims.get("seconds"), int | float)


def _like(value: object) -> Any:
    return int | float if isinstance(value, float) else type(value)


def in_order(
    stalls: Iterable[dict[str, Any]], order: Order, limit: int = 100
) -> list[dict[str, Any]]:
    """``stalls`` as ``as_json`` shows them, those in progress first, at most ``limit``."""

    def key(stall: Mapping[str, Any]) -> tuple[bool, float]:
        by = {"newest": "started_at", "longest": "duration_s"}.get(order)
        return stall["in_progress"], stall[by] if by else stall["victims"]["seconds"]

    return sorted(stalls, key=key, reverse=True)[:limit]
