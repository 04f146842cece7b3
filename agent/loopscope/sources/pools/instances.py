"""What is put around the methods of one object: its waits and uses are timed, and nobody else's.

asyncio's primitives have room for attributes, and call their own methods through the object
(``async with semaphore`` calls ``self.acquire``, ``Queue.put`` calls ``self.put_nowait``). So ours
stand in the object's own dictionary, in front of the class', until they are taken out again.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import wraps
from typing import Any

from loopscope.core.leak import Reason
from loopscope.sources.pools.meter import Meter
from loopscope.sources.pools.use import Use

Failed = Callable[[Exception], None]
"""Hears of what went wrong in here."""


_MARK = "loopscope_instance"
"""The attribute of an object that keeps what has replaced its methods. Nothing else may, or the
object would be kept as well."""


class Instance:
    """One object whose methods are replaced, from the start to ``undo``."""

    def __init__(self, pool: Any, meter: Meter, failed: Failed) -> None:
        self._attributes: dict[str, Any] = pool.__dict__
        self._meter = meter
        self._failed = failed
        self._ours: dict[str, Any] = {}
        self._before: dict[str, Any] = {}

    def undo(self) -> None:
        """Leave the object as it was; what somebody has put in front of ours stays."""
        for name, ours in self._ours.items():
            if self._attributes.get(name) is ours:
                if name in self._before:
                    self._attributes[name] = self._before[name]
                else:
                    del self._attributes[name]

    def put(self, name: str, original: Any, replacement: Any) -> None:
        """Have ``replacement`` called for ``original``, the object's method ``name``."""
        if name in self._attributes:
            self._before[name] = self._attributes[name]
        self._ours[name] = self._attributes[name] = wraps(original)(replacement)

    def ask(self, *, is_phase: bool, kind: type[Use] = Use) -> Use | None:
        """Somebody wants something; None if that could not be noted."""
        try:
            return self._meter.ask(is_phase=is_phase, kind=kind)
        except Exception as error:
            self._failed(error)
            return None

    def gave_up(self, use: Use | None, error: BaseException) -> None:
        """``use`` will not have what it waits for."""
        try:
            if use is not None:
                use.failed(error)
        except Exception as fault:
            self._failed(fault)


class SemaphoreInstance(Instance):
    """A semaphore or lock of asyncio's.

    Nothing says whose acquisition a release ends: it is taken to be the latest of the same task,
    and where that has none, the oldest of all.
    """

    def __init__(self, pool: Any, meter: Meter, failed: Failed) -> None:
        super().__init__(pool, meter, failed)
        self._uses: dict[int, list[Use]] = {}
        """By task, in the order of their first."""
        acquire, release, locked = pool.acquire, pool.release, pool.locked
        uses = self._uses

        async def acquiring(*arguments: Any, **keywords: Any) -> Any:
            use = self.ask(is_phase=locked())
            try:
                taken = await acquire(*arguments, **keywords)
            except BaseException as error:
                self.gave_up(use, error)
                raise
            try:
                if use is not None:
                    use.got()
                    uses.setdefault(_task(), []).append(use)
            except Exception as error:
                failed(error)
            return taken

        def releasing(*arguments: Any, **keywords: Any) -> Any:
            result = release(*arguments, **keywords)
            try:
                if uses:
                    self._gave_back()
            except Exception as error:
                failed(error)
            return result

        self.put("acquire", acquire, acquiring)
        self.put("release", release, releasing)

    def _gave_back(self) -> None:
        task = _task()
        if task not in self._uses:
            task = next(iter(self._uses))
        mine = self._uses[task]
        use = mine.pop()
        if not mine:
            del self._uses[task]
        use.release()


class Item(Use):
    """Something in a queue. It may well outlive its request, and be there for long."""

    __slots__ = ()

    def reason_to_worry(self, now: float, leak_after: float) -> Reason | None:
        return None


class QueueInstance(Instance):
    """A queue of asyncio's: who puts waits for room, and an item uses that until it is taken."""

    def __init__(self, pool: Any, meter: Meter, failed: Failed) -> None:
        super().__init__(pool, meter, failed)
        self._putting: dict[int, Use] = {}
        """By task: those that are inside of ``put``, which calls ``put_nowait`` in the end."""
        self._items: dict[int, deque[Use]] = {}
        """By item: what is put twice is got in this order."""
        items = self._items
        put, put_nowait, get_nowait, full = pool.put, pool.put_nowait, pool.get_nowait, pool.full

        async def putting(*arguments: Any, **keywords: Any) -> Any:
            task = _task()
            use = self.ask(is_phase=full(), kind=Item)
            if use is not None:
                self._putting[task] = use
            try:
                return await put(*arguments, **keywords)
            except BaseException as error:
                self.gave_up(self._putting.pop(task, None), error)
                raise
            finally:
                self._putting.pop(task, None)

        def putting_nowait(item: Any) -> Any:
            use = self._putting.pop(_task(), None) or self.ask(is_phase=False, kind=Item)
            try:
                result = put_nowait(item)
            except BaseException as error:
                self.gave_up(use, error)
                raise
            try:
                if use is not None:
                    use.got()
                    items.setdefault(id(item), deque()).append(use)
            except Exception as error:
                failed(error)
            return result

        def getting_nowait(*arguments: Any, **keywords: Any) -> Any:
            item = get_nowait(*arguments, **keywords)
            try:
                if id(item) in items:  # or it was put before we came
                    self._gave_back(id(item))
            except Exception as error:
                failed(error)
            return item

        self.put("put", put, putting)
        self.put("put_nowait", put_nowait, putting_nowait)
        self.put("get_nowait", get_nowait, getting_nowait)

    def _gave_back(self, item: int) -> None:
        uses = self._items[item]
        use = uses.popleft()
        if not uses:
            del self._items[item]
        use.release()


def is_timed(pool: object) -> bool:
    """Whether ``replace_methods`` does anything for ``pool``."""
    return isinstance(pool, asyncio.Semaphore | asyncio.Lock | asyncio.Queue)


def replace_methods(pool: Any, meter: Meter, failed: Failed) -> None:
    """Have ``meter`` know who waits for ``pool`` and who uses it, if there is room for that."""
    if is_timed(pool):
        kind = QueueInstance if isinstance(pool, asyncio.Queue) else SemaphoreInstance
        pool.__dict__[_MARK] = kind(pool, meter, failed)


def restore_methods(pool: Any) -> None:
    """Leave ``pool`` as it was."""
    if is_timed(pool):
        instance: Instance | None = pool.__dict__.pop(_MARK, None)
        if instance is not None:
            instance.undo()


def _task() -> int:
    """Which task this is; 0 if none."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop
        return 0
    return 0 if task is None else id(task)
