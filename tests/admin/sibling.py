"""A worker that has something to tell: run as ``sibling.py DIRECTORY``, ends with its input.

It has answered some requests, was blocked once, and is in the middle of a request that holds
something of a pool.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope
from loopscope.agent import current_agent, stop_agent
from loopscope.sources.pools.meter import Level
from tests.exporters.providers import make_provider, set_provider
from tests.harness import call

SEQUENCES = 6
"""How many requests have waited twice, one wait after the other."""


async def sequence(request: Request) -> Response:
    await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    return PlainTextResponse("done")


async def computes(request: Request) -> Response:
    time.sleep(0.3)  # noqa: ASYNC251  # what it is about
    return PlainTextResponse("done")


async def holds(request: Request) -> Response:
    agent = current_agent()
    assert agent is not None
    use = agent.pools.book.meter(agent, "shelf", "db.test", lambda _: Level(capacity=2.0)).ask()
    use.got()
    await asyncio.Event().wait()
    return PlainTextResponse("never")


async def live(directory: str) -> None:
    Counter("shop_sold", "Things sold.", ["kind"]).labels("book").inc(3)
    Histogram("shop_price", "What they cost.").observe(0.5)
    routes = [Route(f"/{each.__name__}", each) for each in (sequence, computes, holds)]
    app: Any = Loopscope(Starlette(routes=routes), directory=directory)
    for path in ("/sequence",) * SEQUENCES + ("/computes",):
        await call(app, path)
    holding = asyncio.create_task(call(app, "/holds"))
    while not stalls_seen():
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    holding.cancel()


def stalls_seen() -> bool:
    agent = current_agent()
    return agent is not None and len(agent.profile) > 0


if __name__ == "__main__":
    set_provider(make_provider()[0])
    asyncio.run(live(sys.argv[1]))
    stop_agent()
