"""What a worker alone knows, for whoever puts it together with what its siblings know.

Figures are in pages, which anybody may read. These are not: what is under way, and what would be
too much to write down all the time. Documents are made for a sibling's eyes (``hatch``), in the
terms of the public ones, and of JSON's types.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client import REGISTRY

from loopscope.admin.awaits import sequences
from loopscope.admin.pools import held
from loopscope.admin.requests import listed
from loopscope.agent import Agent
from loopscope.core.merge import Family
from loopscope.core.phases import AFTERWARDS, LOOP_RUN
from loopscope.exporters.carried import Described, described
from loopscope.sources.requests import PHASE

Document = dict[str, Any]
Asked = Mapping[str, str]
"""Query parameters: ``limit``, a number, ``route``, where only one is of interest, and whatever
says by being there that it is wanted."""


class UnknownPartError(LookupError):
    """There is nothing of that name; siblings of another version may ask for it."""


class Own:
    """What the worker of ``agent`` tells. Takes locks: not for a service's event loop."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.worker = str(os.getpid())
        self._parts: Mapping[str, Callable[[Asked], Document]] = {
            "requests": self._requests,
            "held": self._held,
            "sequences": self._sequences,
            "blocking": self._blocking,
            "time": self._time,
            "page": self._page,
        }

    def tell(self, part: str, asked: Asked) -> Document:
        """One part. Raises ``UnknownPartError``, and ``ValueError`` for senseless parameters."""
        if part not in self._parts:
            raise UnknownPartError(f"this worker knows {', '.join(self._parts)}, not {part}")
        return self._parts[part](asked)

    def _requests(self, asked: Asked) -> Document:
        """``{"in_flight", "requests"}``, the oldest ``limit`` of them."""
        agent = self._agent
        live = agent.live_requests()
        stuck_after, limit = agent.settings.stuck_after, int(asked["limit"])
        found = listed(live, agent.users, agent.clock.now(), stuck_after, limit)
        return {"in_flight": len(live), "requests": found}

    def _held(self, asked: Asked) -> Document:
        """``{"held": [...]}``, each with ``pool`` and ``kind``, the oldest of each pool."""
        agent = self._agent
        return {"held": held(agent.pools.book.held(), agent.users, agent.clock.now())}

    def _sequences(self, asked: Asked) -> Document:
        """``{"sequential": [...]}``, all of them or those of ``route``."""
        return {"sequential": sequences(self._agent.awaits.sequential(), asked.get("route"))}

    def _blocking(self, asked: Asked) -> Document:
        """``{"stacks": [[root, [frame], seconds]]}`` of what held the event loop."""
        return {"stacks": self._agent.profile.stacks()}

    def _time(self, asked: Asked) -> Document:
        """What ``exporters.profile.wall_clock`` takes, of all routes or of ``route``.

        ``{"waits": [[route, is_task, [frame], seconds]], "blocking": [[route, [frame], seconds]],
        "running": {route: seconds}, "total": {route: seconds}}``
        """
        agent = self._agent
        running, total = seconds_by_route(agent.own_snapshot(), asked.get("route"))
        return {
            "waits": [wait for wait in agent.awaits.stacks() if wait[0] in total],
            "blocking": [held for held in agent.profile.stacks() if held[0] in total],
            "running": running,
            "total": total,
        }

    def _page(self, asked: Asked) -> Document:
        """For ``/metrics``, each as far as it is asked for.

        ``{"worker", "exemplars": [[metric, [label], bucket, value, unix_s, trace_id, span_id]],
        "users": [the service's own families, see exporters.carried]}``
        """
        exemplars = self._agent.exemplars().items() if "exemplars" in asked else ()
        return {
            "worker": self.worker,
            "exemplars": [[*key, *exemplar] for key, exemplar in exemplars],
            "users": self._users() if "users" in asked else [],
        }

    def _users(self) -> Described:
        """The service's own metrics, if they are to be published and its collectors let us."""
        if not self._agent.settings.user_metrics:
            return []
        try:
            return described(REGISTRY)
        except Exception as error:
            self._agent.faults.report("admin", error)
            return []


def seconds_by_route(
    families: list[Family], only: str | None
) -> tuple[dict[str, float], dict[str, float]]:
    """For how long requests ran, and how long they took: by route, or of one route."""
    running: defaultdict[str, float] = defaultdict(float)
    total: defaultdict[str, float] = defaultdict(float)
    for family in families:
        if family.metric.name == PHASE.name:
            for (route, _, phase), raw in family.rows.items():
                if only not in (None, route):
                    continue
                seconds = family.values(raw)[0]
                total[route] += seconds if phase != AFTERWARDS else 0.0
                running[route] += seconds if phase == LOOP_RUN else 0.0
    return running, total
