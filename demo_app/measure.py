"""Scrapes the admin listener before and after a load, and waits till the service has calmed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import httpx

from demo_app.scrape import Scrape, parse

# In flight: the response not yet sent, the response sent but the task still running, and sockets.
_IN_FLIGHT = (
    "http_server_active_requests",
    "loopscope_background_requests",
    "loopscope_websocket_active",
)
_SCRAPE_EVERY_S = 1.5
_CALM_WITHIN_S = 5.0
_POLL_S = 0.1


class NoFiguresError(Exception):
    """The admin listener did not give a usable exposition."""


async def scrape(admin_url: str) -> Scrape:
    """One scrape of ``/metrics``; raises ``NoFiguresError`` if there is none to be had."""
    url = f"{admin_url}/metrics"
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(url)
            answer.raise_for_status()
        return parse(answer.text, time.monotonic())
    except (httpx.HTTPError, ValueError) as error:
        raise NoFiguresError(f"no metrics from {url}: {error or type(error).__name__}") from error


async def stalls(admin_url: str) -> list[dict[str, Any]]:
    """What held the event loop, by place, most seconds first; raises ``NoFiguresError``."""
    return await _list(f"{admin_url}/api/stalls?group=location&limit=1000", "groups")


async def single_stalls(admin_url: str) -> list[dict[str, Any]]:
    """What held the event loop, one by one, newest first; raises ``NoFiguresError``."""
    return await _list(f"{admin_url}/api/stalls?limit=1000", "stalls")


async def sequential(admin_url: str) -> list[dict[str, Any]]:
    """What always awaits one after the other, most to be saved first; raises ``NoFiguresError``."""
    return await _list(f"{admin_url}/api/awaits?limit=1000", "sequential")


async def pools(admin_url: str) -> list[dict[str, Any]]:
    """All pools, with what is held of each right now; raises ``NoFiguresError``."""
    return await _list(f"{admin_url}/api/pools", "pools")


async def _list(url: str, key: str) -> list[dict[str, Any]]:
    try:
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(url)
            answer.raise_for_status()
        found: list[dict[str, Any]] = answer.json()[key]
    except (httpx.HTTPError, ValueError, KeyError) as error:
        raise NoFiguresError(f"no {key} from {url}: {error or type(error).__name__}") from error
    return found


@asynccontextmanager
async def scraped_meanwhile(admin_url: str) -> AsyncIterator[None]:
    """Asks for ``/metrics`` now and then during the block, as a Prometheus would.

    What is not given back to a pool is looked for whenever somebody asks.
    """

    async def ask() -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                await asyncio.sleep(_SCRAPE_EVERY_S)
                with suppress(httpx.HTTPError):
                    await client.get(f"{admin_url}/metrics")

    asking = asyncio.create_task(ask())
    try:
        yield
    finally:
        asking.cancel()
        await asyncio.wait((asking,))


async def scrape_when_calm(admin_url: str) -> Scrape:
    """A scrape with nothing in flight any more, or the last one after some seconds of trying.

    The client has its last byte a moment before the service has written the request down, and
    background tasks go on for longer.
    """
    deadline = time.monotonic() + _CALM_WITHIN_S
    while True:
        latest = await scrape(admin_url)
        if not any(latest.total(name) for name in _IN_FLIGHT) or time.monotonic() > deadline:
            return latest
        await asyncio.sleep(_POLL_S)
