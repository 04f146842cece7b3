"""What the admin listener serves, made of what all workers of a group know, whoever serves it.

Counts and gauges are in the pages, and anybody may read these: a worker, who then is one of many
(``Agent``), or somebody beside them (``Bystander``). The rest each worker knows alone: the one that
answers tells it directly (``Own``), the others are asked (``Siblings``). A worker without siblings
is the simplest case, not another one.

Documents in which something of a worker may be missing name in ``silent`` those that were alive and
did not answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Protocol

from loopscope.admin.awaits import awaits
from loopscope.admin.own import Own, seconds_by_route
from loopscope.admin.pools import pools
from loopscope.admin.requests import oldest
from loopscope.admin.siblings import PATIENCE_FOR_METRICS, Siblings, Told
from loopscope.admin.snapshot import snapshot
from loopscope.agent import Agent
from loopscope.core.clock import Clock
from loopscope.core.merge import Family
from loopscope.core.stall import Order
from loopscope.exporters.carried import Carried, Described, Exemplars, newest
from loopscope.exporters.profile import UNTOLD, BlockingProfile, wall_clock
from loopscope.exporters.prometheus import is_openmetrics

Document = dict[str, Any]
_Held = tuple[str, tuple[str, ...], float]

_MOST_STACKS = 5000
"""Of all workers together."""


class Pages(Protocol):
    """What is to be read in files of all workers, the dead included."""

    @property
    def clock(self) -> Clock: ...

    @property
    def renderer(self) -> Executor:
        """One thread, and the only one in which anything else here is called."""
        ...

    def render(self, accept: str, carried: Carried, /) -> tuple[list[bytes], str]:
        """Body, in pieces, and content type of ``/metrics``, with what workers told for it."""
        ...

    def snapshot(self) -> list[Family]:
        """All families now."""
        ...

    def stalls(self, order: Order, limit: int, /) -> list[Document]:
        """Stalls as ``/api/stalls`` lists them, those in progress first."""
        ...

    def workers(self) -> list[int]:
        """Processes of the workers that are alive; the first is the one that answers, if one is."""
        ...


@dataclass(frozen=True, slots=True)
class Profiled:
    """A profile, and the workers whose share in it is missing."""

    profile: BlockingProfile
    silent: list[str]


class Figures:
    """All that is served, as finished things. For the thread of ``renderer``, all of it.

    ``own`` is left out by who is no worker, ``siblings`` by who has none.
    """

    def __init__(
        self, pages: Pages, own: Own | None = None, siblings: Siblings | None = None
    ) -> None:
        self._pages = pages
        self._own = own
        self._siblings = siblings

    @property
    def renderer(self) -> Executor:
        """Where all of this is to be made."""
        return self._pages.renderer

    def metrics(self, accept: str) -> tuple[list[bytes], str]:
        """Body, in pieces, and content type of ``/metrics`` for an ``Accept`` header."""
        asked: dict[str, str] = {}
        if is_openmetrics(accept):
            asked["exemplars"] = "yes"
        if self._own is None:  # a worker publishes what the service has in this process
            asked["users"] = "yes"
        told = Told()
        if self._siblings is not None and asked:
            told = self._siblings.ask("page", asked, PATIENCE_FOR_METRICS)
        pages = told.read(_Page)
        users = [(page.worker, page.users) for page in pages if page.users]
        exemplars = newest(page.exemplars for page in pages)
        return self._pages.render(accept, Carried(exemplars, users))

    def snapshot(self) -> Document:
        """``/api/snapshot``."""
        return snapshot(self._pages.snapshot(), self._pages.clock)

    def stalls(self, order: Order, limit: int) -> list[Document]:
        """The list in ``/api/stalls``."""
        return self._pages.stalls(order, limit)

    def workers(self) -> list[int]:
        """The processes that there may be profiles of."""
        return self._pages.workers()

    def blocking_profile(self) -> Profiled:
        """What held the event loops, in seconds, as long as its workers have lived."""
        told = self._told("blocking")
        profile = BlockingProfile(_MOST_STACKS)
        for stacks in told.read(_stacks):
            for root, stack, seconds in stacks:
                profile.add(stack, seconds, root)
        return Profiled(profile, told.silent)

    def requests(self, limit: int) -> Document:
        """``/api/requests``."""
        told = self._told("requests", limit=str(limit))
        return oldest(told.read(_requests), limit) | {"silent": told.silent}

    def awaits(self, route: str | None, limit: int) -> Document:
        """``/api/awaits``."""
        told = self._told("sequences", **_only(route))
        sequences = told.read(lambda answer: list(answer["sequential"]))
        document = awaits(self._pages.snapshot(), sequences, route, limit)
        return document | {"silent": told.silent}

    def wall_profile(self, route: str | None) -> Profiled:
        """Where the time of requests went, of all routes or one: to the second what was counted."""
        # Read before anybody is asked: who goes on meanwhile is not taken for somebody missing.
        _, counted = seconds_by_route(self._pages.snapshot(), route)
        told = self._told("time", **_only(route))
        times = told.read(_Times)
        profile = wall_clock(
            [wait for time in times for wait in time.waits],
            [held for time in times for held in time.blocking],
            _added(time.running for time in times),
            total := _added(time.total for time in times),
        )
        for each, seconds in counted.items():
            profile.add((UNTOLD,), seconds - total.get(each, 0.0), each)
        return Profiled(profile, told.silent)

    def pools(self) -> Document:
        """``/api/pools``."""
        told = self._told("held")
        held = told.read(lambda answer: list(answer["held"]))
        return pools(self._pages.snapshot(), held) | {"silent": told.silent}

    def _told(self, part: str, **asked: str) -> Told:
        """What all workers say of one part."""
        told = Told() if self._siblings is None else self._siblings.ask(part, asked)
        if self._own is not None:
            told.answers.append((self._own.worker, self._own.tell(part, asked)))
        return told


def of_worker(agent: Agent) -> Figures:
    """The figures as the worker of ``agent`` serves them."""
    group = agent.group
    siblings = None if group is None else Siblings(group, agent.faults)
    return Figures(agent, Own(agent), siblings)


class _Times:
    """One worker's part of where time went. Raises what reading a document raises."""

    def __init__(self, answer: Document) -> None:
        self.waits = [
            (str(route), bool(is_task), tuple(map(str, stack)), float(seconds))
            for route, is_task, stack, seconds in answer["waits"]
        ]
        self.blocking = _held(answer["blocking"])
        self.running = {str(route): float(each) for route, each in answer["running"].items()}
        self.total = {str(route): float(each) for route, each in answer["total"].items()}


class _Page:
    """One worker's part of ``/metrics``. Raises what reading a document raises."""

    def __init__(self, answer: Document) -> None:
        self.worker = str(answer["worker"])
        self.users: Described = [
            [*map(str, words), [[str(name), dict(labels), float(n)] for name, labels, n in samples]]
            for *words, samples in answer["users"]
        ]
        self.exemplars = _exemplars(answer["exemplars"])


def _held(stacks: Iterable[tuple[Any, Any, Any]]) -> list[_Held]:
    return [(str(root), tuple(map(str, stack)), float(each)) for root, stack, each in stacks]


def _stacks(answer: Document) -> list[_Held]:
    return _held(answer["stacks"])


def _requests(answer: Document) -> tuple[int, list[Document]]:
    requests = list(answer["requests"])
    return int(answer["in_flight"]), [each | {"age_s": float(each["age_s"])} for each in requests]


def _exemplars(several: Iterable[tuple[Any, ...]]) -> Exemplars:
    return {
        (str(metric), tuple(map(str, labels)), int(bucket)): (
            float(value),
            float(moment),
            int(trace_id),
            int(span_id),
        )
        for metric, labels, bucket, value, moment, trace_id, span_id in several
    }


def _added(several: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: defaultdict[str, float] = defaultdict(float)
    for each in several:
        for route, seconds in each.items():
            total[route] += seconds
    return dict(total)


def _only(route: str | None) -> dict[str, str]:
    return {} if route is None else {"route": route}
