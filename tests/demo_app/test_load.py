"""The load generator's pacing and counting, with customers that ask nobody."""

from __future__ import annotations

import asyncio
import math

import httpx
import pytest

from demo_app.load import Load, Plan
from demo_app.scenarios import Customer, Endpoint, Scenario

URL = "http://127.0.0.1:1"
ASK = Endpoint("GET", "/ask")


async def answer(_: Customer) -> int:
    """Everything is fine."""
    return 200


async def fail(_: Customer) -> int:
    """The service is broken."""
    return 503


async def nobody(_: Customer) -> int:
    """There is no service."""
    raise httpx.ConnectError("refused")


@pytest.mark.real_time
def test_the_plan_bounds_the_number_of_requests() -> None:
    """200 a second for a quarter of a second are at most 50 requests, for seven customers too."""
    load = Load(URL, Plan(200.0, 7, 0.25), (Scenario(ASK, 1, answer),))
    asyncio.run(load.run())
    assert 0 < load.tally.by_endpoint()[ASK] <= 50


def test_answers_are_counted_by_status_and_failures_apart() -> None:
    """A 503 is an answer and an error; no answer is neither."""

    async def last(_: Customer) -> int:
        load.finish()
        return 200

    scenarios = tuple(Scenario(ASK, 1, act) for act in (answer, fail, nobody, last))
    load = Load(URL, Plan(1e6, 1, 60.0), scenarios)
    asyncio.run(load.run())
    assert load.tally.answers == {(ASK, 200): 2, (ASK, 503): 1}
    assert (load.tally.requests, load.tally.errors, load.tally.failures.total()) == (3, 1, 1)


@pytest.mark.real_time
def test_a_slow_service_does_not_stretch_the_load() -> None:
    """What is overdue at the end of the time is dropped: one long answer leaves one request."""

    async def slow(_: Customer) -> int:
        await asyncio.sleep(0.7)
        return 200

    load = Load(URL, Plan(1_000.0, 1, 0.5), (Scenario(ASK, 1, slow),))
    asyncio.run(load.run())
    assert load.tally.requests == 1


@pytest.mark.real_time
def test_a_load_without_end_ends_when_asked_and_answers_what_it_began() -> None:
    """After ``finish`` no more than the customers already waiting for their moment go."""
    load = Load(URL, Plan(1_000.0, 3, math.inf), (Scenario(ASK, 1, answer),))

    async def run() -> int:
        running = asyncio.create_task(load.run())
        while load.tally.requests < 10:
            await asyncio.sleep(0.001)
        load.finish()
        begun = load.tally.requests
        await running
        return begun

    begun = asyncio.run(run())
    assert begun <= load.tally.requests <= begun + 3


def test_a_bug_in_a_scenario_is_not_taken_for_a_failure() -> None:
    """Only what the network may do is counted; our own mistakes end the load loudly."""

    async def broken(_: Customer) -> int:
        raise KeyError("a bug")

    load = Load(URL, Plan(100.0, 1, 0.1), (Scenario(ASK, 1, broken),))
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(load.run())
    assert caught.group_contains(KeyError)
