"""``/api/awaits``: which line of the service's code waited for what, and what always follows on.

::

    {"awaits": [{"route", "site", "callee", "count", "seconds"}],
     "sequential": [{"route", "location", "sites", "requests", "saved_at_most_s"}]}

Most seconds first. ``saved_at_most_s`` is what running the ``sites`` together would have saved, had
none of them needed another's result.
"""

from __future__ import annotations

from typing import Any

from loopscope.agent import Agent


def awaits(agent: Agent, route: str | None, limit: int) -> dict[str, Any]:
    """The document above; of one ``route`` only, where one is given. At most ``limit`` of each."""
    waits = [wait for wait in agent.awaits.listed() if route in (None, wait.route)]
    sequences = [each for each in agent.awaits.sequential() if route in (None, each.route)]
    return {
        "awaits": [
            {
                "route": wait.route,
                "site": wait.site,
                "callee": wait.callee,
                "count": wait.waits,
                "seconds": wait.seconds,
            }
            for wait in waits[:limit]
        ],
        "sequential": [
            {
                "route": each.route,
                "location": each.location,
                "sites": list(each.sites),
                "requests": each.requests,
                "saved_at_most_s": each.saved_at_most,
            }
            for each in sequences[:limit]
        ],
    }
