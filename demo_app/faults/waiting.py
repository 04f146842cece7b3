"""What makes requests wait for longer than they need to, or for ever."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence

import httpx
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response

from demo_app import switches
from demo_app.database import Pool

CARRIERS = ("alder", "birch", "cedar", "dogwood")

_PRINTER_S = 1.2
_SOLD = """
SELECT coalesce(sum(quantity), 0)::int FROM order_lines JOIN orders ON number = order_number
WHERE sku = $1 AND status <> 'refunded'
"""


async def ask_carriers_one_after_the_other(upstream: httpx.AsyncClient) -> dict[str, int]:
    """Wait for each of four answers before asking the next, although none needs another's.

    Only where ``switches`` has it on; else they are asked all at once. Shown: the whole duration as
    ``await_other``, this function as a sequential await, and nearly three quarters of its seconds
    as what a gather would save.
    """
    if not switches.is_on(ask_carriers_one_after_the_other):
        answers = await asyncio.gather(*(_days(upstream, carrier) for carrier in CARRIERS))
        return dict(zip(CARRIERS, answers, strict=True))
    days: dict[str, int] = {}
    for carrier in CARRIERS:
        answer = await upstream.get(f"/carriers/{carrier}")
        days[carrier] = answer.json()["days"]
    return days


async def _days(upstream: httpx.AsyncClient, carrier: str) -> int:
    answer = await upstream.get(f"/carriers/{carrier}")
    days: int = answer.json()["days"]
    return days


async def ask_customs_without_a_deadline(number: int, upstream: httpx.AsyncClient) -> None:
    """Wait for as long as somebody else pleases: now and then that is 12 s.

    Only where ``switches`` has it on. Shown: while it lasts, the request at ``/api/requests``, from
    some age on ``stuck``, with this line and what it awaits; then the seconds under this site. A
    ``timeout`` would have ended it.
    """
    if switches.is_on(ask_customs_without_a_deadline) and number % 50 == 0:
        await upstream.get("/customs", timeout=None)


async def count_sales_one_by_one(skus: Sequence[str], database: Pool) -> dict[str, int]:
    """One query for the list, then one more for every row of it (N+1).

    Only where ``switches`` has it on. Shown: this line's ``Pool.fetchval`` with many times as many
    waits as the route had requests, each of them short; those below 1 ms (``await_threshold``) are
    in ``await_other`` only. One query with ``= ANY($1)`` would do.
    """
    sold: dict[str, int] = {}
    if switches.is_on(count_sales_one_by_one):
        for sku in skus:  # no comprehension, which before Python 3.12 is a function of its own
            sold[sku] = await database.fetchval(_SOLD, sku)
    return sold


def wait_for_the_printer() -> None:
    """Plain ``def`` code that got slow, and with it each of the few threads that run such code.

    Only where ``switches`` has it on. Shown: the seconds of the route as ``thread_run``, and, once
    no thread is left, ``thread_wait``: for the limiter, which all plain functions share. That is a
    pool of kind ``threads``, as full as can be, which this route holds.
    """
    time.sleep(_PRINTER_S if switches.is_on(wait_for_the_printer) else 0.004)


async def audit_every_request(request: Request, call_next: RequestResponseEndpoint) -> Response:
    """A middleware that waits before every request, whatever it asks for, and computes after it.

    Only where ``switches`` has it on. Shown: this function among the awaits of every route, with a
    wait a request; a task more for each, which ``BaseHTTPMiddleware`` makes; more ``loop_run``.
    """
    await asyncio.sleep(0.015)
    response = await call_next(request)
    digest = b""
    for _ in range(1_000):
        digest = hashlib.sha256(digest).digest()
    response.headers["audit"] = digest.hex()
    return response
