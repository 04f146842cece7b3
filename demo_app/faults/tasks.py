"""What makes more tasks than it should, or loses sight of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import httpx

from demo_app import switches
from demo_app.database import Pool

_SHELF = "SELECT stock FROM products WHERE name = $1"
_MOST_SHELVES = 300

_forgotten: set[asyncio.Task[None]] = set()
"""asyncio itself keeps tasks by weak references only."""


async def count_all_shelves_at_once(names: Sequence[str], database: Pool) -> int:
    """Gather without a bound: hundreds of tasks a request, for a pool of ten connections.

    Only where ``switches`` has it on. Shown: a fan-out of hundreds (``loopscope_request_tasks``),
    ``asyncio_tasks_created_total`` that grows as fast, and, as each task waits for the pool, many
    times the route's seconds awaited in ``_count``. A semaphore, or one query, would be the cure.
    """
    if not switches.is_on(count_all_shelves_at_once):
        return 0
    asked = names[:_MOST_SHELVES]
    return sum(await asyncio.gather(*(_count(name, database) for name in asked)))


async def _count(name: str, database: Pool) -> int:
    stock: int = await database.fetchval(_SHELF, name)
    return stock


def tell_the_warehouse_and_forget(number: int, upstream: httpx.AsyncClient) -> None:
    """Make a task that nobody awaits: it goes on when its request is long over.

    Only where ``switches`` has it on. Shown: a task that outlives each request
    (``loopscope_request_tasks_outliving_total``), and ``_tell`` among the tasks alive. Its failure
    would be nobody's, and a shutdown does not wait for it: a background task or a queue would do.
    """
    if switches.is_on(tell_the_warehouse_and_forget):
        task = asyncio.create_task(_tell(number, upstream))
        _forgotten.add(task)
        task.add_done_callback(_forgotten.discard)


async def _tell(number: int, upstream: httpx.AsyncClient) -> None:
    with suppress(httpx.HTTPError):
        await upstream.post("/mails", json={"to": "warehouse", "about": number})
