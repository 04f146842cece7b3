"""``/api/requests``: how old each is, in which phase, and what it is waiting for right now.

::

    {"in_flight": 3,
     "requests": [{"worker" (its number), "route", "method", "age_s", "phase", "stuck",
                   "awaiting": ["app/main.py:41 build", ...],
                   "tasks": [{"coroutine", "awaiting"}], "tasks_alive": 1}],
     "silent": [numbers of workers that did not answer]}

The oldest come first. ``awaiting`` is outermost first, down to what ends the wait.

Looked at from the thread that answers, while the event loop goes on (or does not): a coroutine that
is suspended shows where, and one that is running is told from its thread's stack.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from loopscope.core.chains import walk
from loopscope.core.stacks import Stack, UserCode, frames_now, is_ours, take
from loopscope.sources.requests import HttpExchange, method_label

MOST_TASKS = 20
"""Tasks listed of one request."""


def listed(
    requests: Iterable[HttpExchange],
    users: UserCode,
    now: float,
    stuck_after: float,
    limit: int,
) -> list[dict[str, Any]]:
    """``requests`` as ``/api/requests`` shows them, the oldest first, at most ``limit``.

    ``now`` on the agent's clock; from an age of ``stuck_after`` seconds on they are ``stuck``.
    """
    oldest_first = sorted(requests, key=lambda request: request.started)
    return [_described(request, users, now, stuck_after) for request in oldest_first[:limit]]


def oldest(of_workers: Iterable[tuple[int, list[dict[str, Any]]]], limit: int) -> dict[str, Any]:
    """The document above but for ``silent``, of each worker's number in flight and list."""
    in_flight = 0
    found: list[dict[str, Any]] = []
    for number, requests in of_workers:
        in_flight += number
        found += requests
    found.sort(key=lambda request: request["age_s"], reverse=True)
    return {"in_flight": in_flight, "requests": found[:limit]}


def _described(
    request: HttpExchange, users: UserCode, now: float, stuck_after: float
) -> dict[str, Any]:
    age = now - request.started
    ledger = request.ledger
    children = [] if ledger is None else ledger.alive()
    return {
        "worker": str(os.getpid()),
        "route": request.route_so_far(),
        "method": method_label(request.scope),
        "age_s": age,
        "phase": request.phase(),
        "stuck": age >= stuck_after,
        "awaiting": _awaiting(request, users),
        "tasks": [
            {
                "coroutine": getattr(child, "__qualname__", ""),
                "awaiting": _chain(child.coroutine, users),
            }
            for child in sorted(children, key=lambda child: child.number)[:MOST_TASKS]
        ],
        "tasks_alive": len(children),
    }


def _awaiting(request: HttpExchange, users: UserCode) -> list[str]:
    if request.step_started > request.suspended:
        return list(users.described(_running(request.lane.recorder.thread)))
    return [] if request.steps is None else _chain(request.steps.coroutine, users)


def _chain(coroutine: object, users: UserCode) -> list[str]:
    """Descriptions of the frames, outermost first, then of what is awaited."""
    chain = walk(coroutine)
    return [*users.described(chain.stack), *([chain.leaf] if chain.leaf else [])]


def _running(thread: int) -> Stack:
    """What a thread runs, from where we called the app on."""
    frame = frames_now().get(thread)
    try:
        stack = take(frame)
    finally:
        del frame
    ours = [at for at, (code, _) in enumerate(stack) if is_ours(code)]
    return stack[ours[-1] + 1 :] if ours else stack
