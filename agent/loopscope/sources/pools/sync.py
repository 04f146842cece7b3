"""How full semaphores, locks, limiters, queues and streams are by their own account.

Nothing here waits or takes a lock, so all of it is fit for any thread. Libraries that the service
has not imported are recognised by name.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection, Mapping
from math import isinf
from typing import Any, Final

from loopscope.sources.pools.meter import Level

Reader = Callable[[Any], Level]
"""Reads a pool."""

METHOD: Final = "loopscope_pool"
"""What an object has to have to be a pool: see `loopscope.watch_pool`."""

_WATCHABLE = (
    "asyncio's Semaphore, BoundedSemaphore, Lock, Queue, LifoQueue and PriorityQueue; anyio's "
    "Semaphore, Lock, CapacityLimiter and memory object streams; threading's Semaphore and "
    f"BoundedSemaphore; anything that has a method {METHOD}()"
)


def reader_of(name: str, pool: Any, capacity: float | None) -> Reader:
    """What reads ``pool``, of which at most ``capacity`` may be in use, if that is known.

    Raises ``TypeError`` for what is no pool, and for what a pool of the service's own says that
    cannot be understood.
    """
    if callable(getattr(pool, METHOD, None)):
        _own_account(name, pool, capacity)
        return lambda own: _own_account(name, own, capacity)
    make = _READERS.get(_kind_of(pool))
    if make is None:
        raise TypeError(
            f"watch_pool({name!r}): {type(pool).__name__} is no pool it knows; it knows "
            f"{_WATCHABLE}"
        )
    return make(pool, capacity)


def _kind_of(pool: Any) -> tuple[str, str]:
    """The package and the name of the first class of ``pool``'s that is known."""
    for base in type(pool).__mro__:
        kind = (base.__module__.partition(".")[0], base.__name__)
        if kind in _READERS:
            return kind
    return ("", "")


def _semaphore(pool: asyncio.Semaphore, capacity: float | None) -> Reader:
    values: Any = pool
    if capacity is None:
        capacity = getattr(values, "_bound_value", values._value) or None  # noqa: SLF001

    def read(semaphore: Any) -> Level:
        return _counted(capacity, semaphore._value, _undone(semaphore._waiters))  # noqa: SLF001

    return read


def _lock(_: asyncio.Lock, capacity: float | None) -> Reader:
    def read(lock: Any) -> Level:
        return _counted(1, not lock.locked(), _undone(lock._waiters))  # noqa: SLF001

    return read


def _queue(pool: asyncio.Queue[Any], capacity: float | None) -> Reader:
    limit = pool.maxsize if pool.maxsize > 0 else capacity

    def read(queue: Any) -> Level:
        return _filled(limit, queue.qsize(), _undone(queue._putters))  # noqa: SLF001

    return read


def _thread_semaphore(pool: threading.Semaphore, capacity: float | None) -> Reader:
    values: Any = pool
    if capacity is None:
        capacity = getattr(values, "_initial_value", values._value) or None  # noqa: SLF001

    def read(semaphore: Any) -> Level:
        return _counted(capacity, semaphore._value, len(semaphore._cond._waiters))  # noqa: SLF001

    return read


def _anyio_semaphore(pool: Any, capacity: float | None) -> Reader:
    if capacity is None:
        capacity = pool.max_value or pool.value or None

    def read(semaphore: Any) -> Level:
        return _counted(capacity, semaphore.value, semaphore.statistics().tasks_waiting)

    return read


def _anyio_lock(_: Any, capacity: float | None) -> Reader:
    def read(lock: Any) -> Level:
        now = lock.statistics()
        return _counted(1, not now.locked, now.tasks_waiting)

    return read


def _anyio_limiter(_: Any, capacity: float | None) -> Reader:
    def read(limiter: Any) -> Level:
        now = limiter.statistics()
        return _filled(now.total_tokens, now.borrowed_tokens, now.tasks_waiting)

    return read


def _anyio_stream(_: Any, capacity: float | None) -> Reader:
    def read(stream: Any) -> Level:
        now = stream.statistics()
        return _filled(now.max_buffer_size, now.current_buffer_used, now.tasks_waiting_send)

    return read


_READERS: Final[Mapping[tuple[str, str], Callable[[Any, float | None], Reader]]] = {
    ("asyncio", "Semaphore"): _semaphore,
    ("asyncio", "Lock"): _lock,
    ("asyncio", "Queue"): _queue,
    ("threading", "Semaphore"): _thread_semaphore,
    ("anyio", "Semaphore"): _anyio_semaphore,
    ("anyio", "Lock"): _anyio_lock,
    ("anyio", "CapacityLimiter"): _anyio_limiter,
    ("anyio", "MemoryObjectSendStream"): _anyio_stream,
    ("anyio", "MemoryObjectReceiveStream"): _anyio_stream,
}


def _own_account(name: str, pool: Any, capacity: float | None) -> Level:
    """What ``pool`` says of itself."""
    said: object = getattr(pool, METHOD)()
    if not isinstance(said, Mapping):
        raise TypeError(f"watch_pool({name!r}): {METHOD}() returned {said!r}, which is no mapping")
    figures: dict[Any, Any] = {"capacity": capacity, **said}
    for key, value in figures.items():
        if key not in Level._fields:
            allowed = ", ".join(Level._fields)
            raise TypeError(f"watch_pool({name!r}): {METHOD}() returned {key!r}; known: {allowed}")
        if value is not None and not isinstance(value, int | float):
            raise TypeError(f"watch_pool({name!r}): {METHOD}() returned {value!r} for {key!r}")
    return Level(**figures)


def _counted(capacity: float | None, free: float, pending: int) -> Level:
    """Of something that knows how many are free."""
    in_use = None if capacity is None else max(0, capacity - free)
    return Level(capacity, in_use, free, pending)


def _filled(capacity: float | None, in_use: int, pending: int) -> Level:
    """Of something that knows how many are in use."""
    if capacity is None or isinf(capacity):
        return Level(in_use=in_use, pending=pending)
    return Level(capacity, in_use, max(0, capacity - in_use), pending)


def _undone(waiters: Collection[asyncio.Future[Any]] | None) -> int:
    """How many of them have neither been woken nor cancelled."""
    return sum(not waiter.done() for waiter in list(waiters or ()))
