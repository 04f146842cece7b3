"""Stops the shop for a moment, twice, and asks loopscope what is going on while it stands still.

After the load and its figures: a service that stands still for two seconds would be in each of its
percentiles. The faults are turned on for one request, and off again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from demo_app import faults
from demo_app.freezes import Answer, Freeze
from demo_app.measure import NoFiguresError

_WITHIN_S = 15.0
"""How long a freeze may last; most are over in two seconds."""
_AT_LEAST_S = 1.0
"""How long one is waited for whose request does not wait for it itself."""
_KNOWN_WITHIN_S = 2.0
_POLL_S = 0.04


@dataclass(frozen=True)
class Stop:
    """A fault, and the request that runs into it."""

    fault: Callable[..., object]
    method: str
    path: str
    body: Mapping[str, Any] | None = None


STOPS = (
    Stop(
        faults.accept_voucher,
        "POST",
        "/api/orders",
        {
            "customer": "somebody with a voucher",
            "lines": [{"sku": "sku-0001", "quantity": 1}],
            "voucher": "A" * (faults.MOST_VOUCHER - 1) + "!",
        },
    ),
    Stop(faults.restock_in_a_thread, "GET", "/api/products?q=oak"),
)


async def freezes(service_url: str, admin_url: str, stops: Iterable[Stop] = STOPS) -> list[Freeze]:
    """All stops, one after the other; raises ``NoFiguresError`` if somebody does not answer."""
    try:
        async with (
            httpx.AsyncClient(base_url=service_url, trust_env=False, timeout=_WITHIN_S) as shop,
            httpx.AsyncClient(base_url=admin_url, trust_env=False) as admin,
        ):
            return [await _frozen(shop, admin, stop) for stop in stops]
    except (httpx.HTTPError, ValueError, LookupError) as error:
        why = f"{error or type(error).__name__}"
        raise NoFiguresError(f"the shop froze, and something with it: {why}") from error


async def _frozen(shop: httpx.AsyncClient, admin: httpx.AsyncClient, stop: Stop) -> Freeze:
    name = stop.fault.__name__
    switch = f"/faults/{name}"
    began = time.time()
    (await shop.put(switch)).raise_for_status()
    request = asyncio.create_task(shop.request(stop.method, stop.path, json=stop.body))
    try:
        answers, meanwhile = await _asked_meanwhile(admin, request)
        await request
    finally:
        request.cancel()
    (await shop.delete(switch)).raise_for_status()
    return Freeze(name, answers, meanwhile, await _known_since(admin, began))


async def _asked_meanwhile(
    admin: httpx.AsyncClient, request: asyncio.Task[httpx.Response]
) -> tuple[list[Answer], dict[str, Any] | None]:
    """What ``/metrics`` and ``/api/stalls`` say of a loop that is held, as long as it is."""
    answers: list[Answer] = []
    meanwhile: dict[str, Any] | None = None
    is_held = False
    until = time.monotonic() + _AT_LEAST_S
    while not request.done() or is_held or (not answers and time.monotonic() < until):
        with suppress(httpx.TimeoutException):  # where there is no sentinel, nobody answers
            answer = await _metrics(admin)
            is_held = answer.held_s > 0
            answers += [answer] if is_held else []
            meanwhile = _seen_now(await _stalls(admin)) or meanwhile
        await asyncio.sleep(_POLL_S)
    return answers, meanwhile


async def _known_since(admin: httpx.AsyncClient, began: float) -> dict[str, Any] | None:
    """The longest stall that began after ``began``, once it is over and was seen from outside."""
    until = time.monotonic() + _KNOWN_WITHIN_S
    while True:
        since = [stall for stall in await _stalls(admin) if stall["started_at"] >= began]
        longest = max(since, key=lambda stall: float(stall["duration_s"]), default=None)
        if longest is not None and longest["outside"] and not longest["in_progress"]:
            return longest
        if time.monotonic() > until:
            return longest
        await asyncio.sleep(_POLL_S)


async def _metrics(admin: httpx.AsyncClient) -> Answer:
    began = time.monotonic()
    response = (await admin.get("/metrics")).raise_for_status()
    return Answer.of(response.text, time.monotonic() - began)


async def _stalls(admin: httpx.AsyncClient) -> list[dict[str, Any]]:
    response = (await admin.get("/api/stalls?limit=100")).raise_for_status()
    stalls: list[dict[str, Any]] = response.json()["stalls"]
    return stalls


def _seen_now(stalls: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The one in progress, as far as another process has seen it."""
    return next((stall for stall in stalls if stall["in_progress"] and stall["outside"]), None)
