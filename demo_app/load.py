"""The load generator: a fixed number of customers, paced to a rate, bounded in time."""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import httpx
from websockets.exceptions import WebSocketException

from demo_app.scenarios import SCENARIOS, Customer, Endpoint, Scenario, schedule

_TIMEOUT_S = 15.0


@dataclass(frozen=True)
class Plan:
    """How much load: at most ``rate * seconds`` requests, at most ``concurrency`` at a time."""

    rate: float
    concurrency: int
    seconds: float


@dataclass
class Tally:
    """What the generator has seen itself: answers by endpoint and status, and what got none."""

    answers: Counter[tuple[Endpoint, int]] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        """All answers so far."""
        return self.answers.total()

    @property
    def errors(self) -> int:
        """Answers with a status of 500 or above."""
        return sum(count for (_, status), count in self.answers.items() if status >= 500)

    def by_endpoint(self) -> Counter[Endpoint]:
        """Answers by endpoint, whatever their status."""
        counts: Counter[Endpoint] = Counter()
        for (endpoint, _), count in self.answers.items():
            counts[endpoint] += count
        return counts


class Load:
    """One run of the generator; ``tally`` and ``elapsed`` may be read while it lasts."""

    def __init__(self, url: str, plan: Plan, scenarios: tuple[Scenario, ...] = SCENARIOS) -> None:
        self.plan = plan
        self.tally = Tally()
        self._url = url
        self._turns = schedule(scenarios)
        self._started = time.monotonic()
        self._finishing = False

    @property
    def elapsed(self) -> float:
        """Seconds since the start, no more than planned."""
        return min(time.monotonic() - self._started, self.plan.seconds)

    async def run(self) -> None:
        """Send the load and wait for every answer."""
        async with AsyncExitStack() as open_until_done:
            customers = [
                Customer(
                    await open_until_done.enter_async_context(_client(self._url)),
                    self._url.replace("http", "ws", 1),
                    random.Random(seed),
                )
                for seed in range(self.plan.concurrency)
            ]
            self._started = time.monotonic()
            due_times = self._due_times()
            async with asyncio.TaskGroup() as visits:
                for customer in customers:
                    visits.create_task(self._visit(customer, due_times))

    def finish(self) -> None:
        """Begin no more requests than those already waiting for their moment."""
        self._finishing = True

    def _due_times(self) -> Iterator[float]:
        """When the next request is due, shared by all customers: the first free one takes it."""
        number = 0
        while not self._finishing and (due := number / self.plan.rate) < self.plan.seconds:
            yield self._started + due
            number += 1

    async def _visit(self, customer: Customer, due_times: Iterator[float]) -> None:
        for due in due_times:
            now = time.monotonic()
            if now - self._started > self.plan.seconds:
                return  # the service could not keep up; what is left would only come late
            await asyncio.sleep(max(0.0, due - now))
            await self._act(customer, next(self._turns))

    async def _act(self, customer: Customer, scenario: Scenario) -> None:
        try:
            status = await scenario.act(customer)
        except (httpx.TransportError, WebSocketException, OSError) as error:
            self.tally.failures[f"{' '.join(scenario.endpoint)} {error!r}"] += 1
        else:
            self.tally.answers[scenario.endpoint, status] += 1


# Plain HTTP needs none, but each client would build its own and load the system's certificates.
_NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _client(url: str) -> httpx.AsyncClient:
    """A client for one customer. A pool shared by all of them would be what they queue for."""
    return httpx.AsyncClient(base_url=url, timeout=_TIMEOUT_S, verify=_NO_TLS, trust_env=False)
