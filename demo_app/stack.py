"""Starts and ends the demo's parts: PostgreSQL, the upstream, the service with its agent."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from demo_app import postgres
from demo_app.child import Child, running

HOST = "127.0.0.1"
ADMIN_PORT = 9464

_FAULTS = (
    "ask_the_bank_on_the_loop,ask_carriers_one_after_the_other,"
    "connect_for_every_order,return_early_with_a_connection"
)
_STUCK_AFTER_S = "5"  # a demonstration does not last for the usual 30

_READY_S = 30.0
_POLL_S = 0.05


@dataclass(frozen=True)
class Part:
    """One part that has become ready, for the report while starting."""

    name: str
    address: str
    remark: str
    seconds: float


@dataclass(frozen=True)
class Stack:
    """Where everything is while it runs."""

    service: Child
    service_url: str
    admin_url: str


Report = Callable[[Part], None]


@asynccontextmanager
async def everything(report: Report, admin_port: int) -> AsyncIterator[Stack]:
    """The whole demo, ready to be used; stopped, in reverse order, at the end of the block.

    Raises ``ChildFailedError`` if a part does not start.
    """
    async with (
        _postgres(report) as dsn,
        _server(
            report, "upstream", "demo_app.upstream:app", "somebody else's, and in no hurry", {}
        ) as (_, upstream_url),
        _shop(report, dsn, upstream_url, admin_port) as stack,
    ):
        yield stack


def free_port(wanted: int) -> int:
    """``wanted``, or a free port if somebody else listens there."""
    try:
        with _listener(wanted):
            return wanted
    except OSError:
        with _listener(0) as listener:
            return _port(listener)


@asynccontextmanager
async def _postgres(report: Report) -> AsyncIterator[str]:
    started = time.monotonic()
    async with running("PostgreSQL", "demo_app.postgres") as keeper:
        dsn = await keeper.hear(postgres.READY, _READY_S)
        where = dsn.partition("host=")[2]
        report(
            Part(
                "PostgreSQL",
                where,
                "embedded, in a temporary directory",
                time.monotonic() - started,
            )
        )
        yield dsn


@asynccontextmanager
async def _shop(
    report: Report, dsn: str, upstream_url: str, admin_port: int
) -> AsyncIterator[Stack]:
    environment = {
        "DEMO_DATABASE": dsn,
        "DEMO_UPSTREAM": upstream_url,
        "LOOPSCOPE_LISTEN": f"{HOST}:{admin_port}",
        "LOOPSCOPE_SENTINEL": os.environ.get("LOOPSCOPE_SENTINEL", "1"),
        "DEMO_FAULTS": os.environ.get("DEMO_FAULTS", _FAULTS),
        "LOOPSCOPE_STUCK_AFTER": os.environ.get("LOOPSCOPE_STUCK_AFTER", _STUCK_AFTER_S),
    }
    app = "demo_app.service:app"
    async with _server(report, "shop", app, "FastAPI on uvicorn and uvloop", environment) as (
        shop,
        url,
    ):
        started = time.monotonic()
        admin_url = f"http://{HOST}:{admin_port}"
        await _answers(shop, f"{admin_url}/healthz")
        report(
            Part(
                "loopscope",
                admin_url,
                "added by one line to the shop",
                time.monotonic() - started,
            )
        )
        yield Stack(shop, url, admin_url)


@asynccontextmanager
async def _server(
    report: Report, name: str, app: str, remark: str, environment: dict[str, str]
) -> AsyncIterator[tuple[Child, str]]:
    started = time.monotonic()
    with _listener(0) as listener:
        url = f"http://{HOST}:{_port(listener)}"
        number = listener.fileno()
        async with running(
            f"the {name} service",
            "demo_app.worker",
            app,
            str(number),
            environment=environment,
            descriptors=[number],
        ) as child:
            listener.close()  # else a connection to a dead child would wait instead of fail
            await _answers(child, f"{url}/healthz")
            report(Part(name, url, remark, time.monotonic() - started))
            yield child, url


def _listener(port: int) -> socket.socket:
    return socket.create_server((HOST, port))


def _port(listener: socket.socket) -> int:
    return int(listener.getsockname()[1])


async def _answers(child: Child, url: str) -> None:
    """Return when ``url`` answers 200; ``ChildFailedError`` if it never does."""
    try:
        async with asyncio.timeout(_READY_S), httpx.AsyncClient(trust_env=False) as client:
            while not await _is_ok(client, url):
                if child.ended:
                    raise child.failure("ended while starting")
                await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise child.failure(f"no answer from {url} within {_READY_S:.0f} s") from None


async def _is_ok(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).is_success
    except httpx.TransportError:
        return False
