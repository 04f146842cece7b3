"""The mix of what customers do."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from demo_app.routes import ROUTERS, faults, health
from demo_app.scenarios import SCENARIOS, UNMATCHED, WEBSOCKET, Endpoint, schedule

ROUND = sum(scenario.weight for scenario in SCENARIOS)


def test_every_full_round_has_each_scenario_exactly_as_often_as_its_weight() -> None:
    """The mix is exact, not random: any number of rounds holds the weights, no more, no less."""
    turns = schedule(SCENARIOS)
    for _ in range(3):
        counts = Counter(islice(turns, ROUND))
        assert counts == {scenario: scenario.weight for scenario in SCENARIOS}


def test_scenarios_are_spread_over_the_round() -> None:
    """No tenth of a round holds more than a fifth of what the heaviest scenario does in it."""
    heaviest = max(SCENARIOS, key=lambda scenario: scenario.weight)
    turns = list(islice(schedule(SCENARIOS), ROUND))
    tenths = [turns[start : start + ROUND // 10] for start in range(0, ROUND, ROUND // 10)]
    assert max(tenth.count(heaviest) for tenth in tenths) <= heaviest.weight / 5


def test_two_schedules_are_alike() -> None:
    """The same scenarios come in the same sequence every time."""
    first, second = (list(islice(schedule(SCENARIOS), ROUND)) for _ in range(2))
    assert first == second


def test_every_route_a_customer_knows_is_visited() -> None:
    """The scenarios name exactly the shop's routes, and the label for paths that match none."""
    offered = {
        Endpoint(method, route.path)  # type: ignore[attr-defined]
        for router in ROUTERS
        if router not in (health.router, faults.router)  # for those who run it
        for route in router.routes
        for method in getattr(route, "methods", {WEBSOCKET})
    }
    visited = {scenario.endpoint for scenario in SCENARIOS}
    assert visited == offered | {Endpoint("GET", UNMATCHED)}
