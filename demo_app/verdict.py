"""What is to be said below the table: who agrees with whom, and who uses the loop. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from demo_app import accounts
from demo_app.figures import Figures, RouteFigures
from demo_app.load import Tally
from demo_app.scenarios import Endpoint
from demo_app.table import milliseconds

_MOST_PLACES = 3


@dataclass(frozen=True)
class Difference:
    """An endpoint of which the service and the load generator counted different numbers."""

    endpoint: Endpoint
    sent: int
    counted: int

    def __str__(self) -> str:
        """Both numbers, with the endpoint they belong to."""
        name = " ".join(self.endpoint)
        return f"{name}: service {self.counted:,}, load generator {self.sent:,}"


def differences(sent: Mapping[Endpoint, int], counted: Mapping[Endpoint, int]) -> list[Difference]:
    """Every endpoint on which the two counts are not equal, by method and route."""
    return [
        Difference(endpoint, sent.get(endpoint, 0), counted.get(endpoint, 0))
        for endpoint in sorted({*sent, *counted})
        if sent.get(endpoint, 0) != counted.get(endpoint, 0)
    ]


def agreement(tally: Tally, figures: Figures) -> tuple[bool, list[str]]:
    """Whether the service counted exactly what the load generator did, and that in sentences."""
    sent, counted = tally.by_endpoint(), figures.by_endpoint()
    found = differences(sent, counted)
    routes = len({*sent, *counted})
    if found:
        said = (
            f"Service and load generator DISAGREE: {figures.requests:,} requests counted, "
            f"{tally.requests:,} answered; they differ on {len(found)} of {routes} routes."
        )
    else:
        said = (
            "Service and load generator agree exactly: "
            f"{figures.requests:,} requests, the same number on each of {routes} routes."
        )
    return not found, [said, *map(str, found), *_unanswered(tally)]


def conservation(figures: Figures) -> tuple[bool, list[str]]:
    """Whether the phases of each route add up to its duration, and that in sentences."""
    found = accounts.gaps(figures)
    routes = accounts.accounted(figures)
    if found:
        said = (
            f"Phases do NOT ADD UP to the duration on {len(found)} of {len(routes)} routes, to "
            "within 1 % or 0.1 ms a request."
        )
    else:
        lasted = sum(route.spent_s for route in routes)
        said = (
            f"Phases add up to the duration on each of {len(routes)} routes: {lasted:.2f} s of "
            f"requests, {sum(map(accounts.in_phases, routes)):.2f} s in phases."
        )
    return not found, [said, *map(str, found)]


def _unanswered(tally: Tally) -> Iterator[str]:
    if tally.failures:
        kinds = ", ".join(f"{count} x {name}" for name, count in tally.failures.most_common())
        yield f"{tally.failures.total():,} more got no answer: {kinds}."


def stall_remarks(
    groups: Sequence[Mapping[str, Any]], stalls: Sequence[Mapping[str, Any]] = ()
) -> Iterator[str]:
    """What held the event loop: the places of ``/api/stalls?group=location`` that cost most.

    Of ``stalls``, the same one by one, it is said which were seen from outside.
    """
    for group in groups[:_MOST_PLACES]:
        where = f" at {group['location']}" if group["location"] else ""
        routes = f" ({', '.join(group['routes'])})" if group["routes"] else ""
        yield (
            f"Event loop held {group['stalls']:,} x, {group['seconds']:.1f} s in all: "
            f"{group['cause'].replace('_', ' ')}{where}{routes}; "
            f"{group['lost_request_seconds']:.1f} request-seconds lost{_outside(group, stalls)}."
        )


def _outside(group: Mapping[str, Any], stalls: Iterable[Mapping[str, Any]]) -> str:
    """How many of a group were seen from outside, and by which thread these were caused."""
    place = (group["location"], group["cause"])
    same = (stall for stall in stalls if (stall["location"], stall["cause"]) == place)
    looks = [stall["outside"] for stall in same if stall["outside"] and stall["outside"]["looks"]]
    if not looks:
        return ""
    threads = Counter((look["thread"], look["thread_location"]) for look in looks if look["thread"])
    held = "".join(f", thread {name} at {line}" for (name, line), _ in threads.most_common(1))
    return f"; {len(looks)} seen from outside{held}"


def remarks(figures: Figures) -> Iterator[str]:
    """What the table does not say by itself, one sentence each."""
    busiest = max(figures.routes, key=lambda route: route.loop_s)
    if busiest.loop_s:
        yield _busiest(busiest, figures)
    yield f"How requests ended: {_outcomes(figures)}."
    yield (
        f"The process used {figures.cpu_share:.0%} of one CPU; loopscope's own bookkeeping took "
        f"{figures.agent_share:.2%}, with {figures.agent_errors} errors."
    )


def _outcomes(figures: Figures) -> str:
    most_first = sorted(figures.outcomes.items(), key=lambda item: -item[1])
    return ", ".join(f"{count:,} {outcome.replace('_', ' ')}" for outcome, count in most_first)


def _busiest(route: RouteFigures, figures: Figures) -> str:
    return (
        f"{' '.join(route.endpoint)}: {route.requests / figures.requests:.0%} of requests, "
        f"{route.loop_s / (figures.loop_share * figures.seconds):.0%} of the work on the event loop"
        f"{_step(route)}."
    )


def _step(route: RouteFigures) -> str:
    step = route.longest_step.quantile(0.5)
    if not route.longest_step.count or step.below is not None:
        return ""
    return f", median hold {milliseconds(step.value)} ms"
