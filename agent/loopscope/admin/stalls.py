"""Stalls grouped by where they happened: which line to mend first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def by_location(stalls: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count and seconds of stalls (as ``/api/stalls`` shows them) by location, most seconds first.

    Stalls with no line to blame are grouped by cause alone.
    """
    groups: dict[tuple[str, str], dict[str, Any]] = {}
    for stall in stalls:
        key = (stall["location"], stall["cause"])
        group = groups.setdefault(
            key,
            {
                "location": stall["location"],
                "cause": stall["cause"],
                "stalls": 0,
                "seconds": 0.0,
                "longest_s": 0.0,
                "lost_request_seconds": 0.0,
                "routes": [],
            },
        )
        group["stalls"] += 1
        group["seconds"] += stall["duration_s"]
        group["longest_s"] = max(group["longest_s"], stall["duration_s"])
        group["lost_request_seconds"] += stall["victims"]["seconds"]
        if stall["route"] and stall["route"] not in group["routes"]:
            group["routes"].append(stall["route"])
    return sorted(groups.values(), key=lambda group: group["seconds"], reverse=True)
