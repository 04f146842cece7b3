"""One stall of an event loop: what the watchdog finds out and everybody else tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
    """``stall`` as ``/api/stalls`` shows it; the keys are a contract that is only ever extended."""
    return {
        "id": stall.id,
        "started_at": stall.started_at,
        "duration_s": stall.duration_s,
        "in_progress": stall.in_progress,
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
