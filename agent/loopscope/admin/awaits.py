"""``/api/awaits``: which line of the service's code waited for what, and what always follows on.

::

    {"awaits": [{"route", "site", "callee", "count", "seconds"}],
     "sequential": [{"route", "location", "sites", "requests", "saved_at_most_s"}],
     "silent": [numbers of workers whose sequences are missing, for they did not answer]}

Most seconds first. ``awaits`` are those that are published, of workers that have ended as well;
sequences are of those that are alive. ``saved_at_most_s`` is what running the ``sites`` together
would have saved, had none of them needed another's result.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from loopscope.core.merge import Family
from loopscope.sources.awaits import COUNT, SECONDS, Sequential

_Sequence = dict[str, Any]


def awaits(
    families: Iterable[Family],
    of_workers: Iterable[list[_Sequence]],
    route: str | None,
    limit: int,
) -> dict[str, Any]:
    """The document above but for ``silent``, of all figures and each worker's ``sequences``.

    Of one ``route`` only, where one is given. At most ``limit`` of each.
    """
    waits = [wait for wait in _published(families) if route in (None, wait["route"])]
    return {"awaits": waits[:limit], "sequential": _together(of_workers)[:limit]}


def sequences(found: Iterable[Sequential], route: str | None) -> list[_Sequence]:
    """What one worker has ``found``, as above."""
    return [
        {
            "route": each.route,
            "location": each.location,
            "sites": list(each.sites),
            "requests": each.requests,
            "saved_at_most_s": each.saved_at_most,
        }
        for each in found
        if route in (None, each.route)
    ]


def _published(families: Iterable[Family]) -> list[dict[str, Any]]:
    """All waits, most seconds first."""
    values: defaultdict[tuple[str, ...], dict[str, float]] = defaultdict(
        lambda: dict.fromkeys((COUNT.name, SECONDS.name), 0.0)
    )
    for family in families:
        if family.metric.name in (COUNT.name, SECONDS.name):
            for labels, raw in family.rows.items():
                values[labels][family.metric.name] = family.values(raw)[0]
    waits = [
        {
            "route": route,
            "site": site,
            "callee": callee,
            "count": int(numbers[COUNT.name]),
            "seconds": numbers[SECONDS.name],
        }
        for (route, site, callee), numbers in values.items()
    ]
    return sorted(waits, key=lambda wait: wait["seconds"], reverse=True)


def _together(of_workers: Iterable[list[_Sequence]]) -> list[_Sequence]:
    """The same sequences of several workers as one, most to be saved first."""
    known: dict[tuple[str, ...], _Sequence] = {}
    for found in of_workers:
        for each in found:
            key = (each["route"], each["location"], *each["sites"])
            if key in known:
                known[key]["requests"] += each["requests"]
                known[key]["saved_at_most_s"] += each["saved_at_most_s"]
            else:
                known[key] = each
    return sorted(known.values(), key=lambda each: each["saved_at_most_s"], reverse=True)
