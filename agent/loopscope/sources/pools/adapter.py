"""What all adapters have in common: they patch when their library is there, and never harm it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from inspect import iscoroutinefunction
from types import ModuleType
from typing import Any, ClassVar, Final
from weakref import ref

from loopscope.core.faults import Faults
from loopscope.core.patch import Patch
from loopscope.sources.chores import Chore
from loopscope.sources.pools.book import PoolBook
from loopscope.sources.pools.meter import Level, Meter
from loopscope.sources.pools.use import Use

METER: Final = "loopscope_meter"
"""The attribute of a pool that is its meter."""
_POOL = "loopscope_pool"
"""The attribute of a connection that leads to its pool."""

_MANY: Final = 1000
"""Things in use that are worth looking through for those that are gone."""

INSIDE_A_POOL: ContextVar[bool] = ContextVar("loopscope_inside_a_pool", default=False)
"""Whether it is a pool that connects right now, whose connections are not without one."""


@contextmanager
def making() -> Generator[None, None, None]:
    """Around a pool's own connecting, whichever library it connects with; see `INSIDE_A_POOL`."""
    before = INSIDE_A_POOL.get()
    INSIDE_A_POOL.set(True)
    try:
        yield
    finally:  # without a token: a coroutine that is garbage may be closed in another context
        INSIDE_A_POOL.set(before)


Function = Callable[..., Any]


class Adapter:
    """Measures the pools of one library, from ``patch`` to ``unpatch``.

    An adapter says how to ``patch``, and of a pool what it is called and how full it is. What it
    puts in the library's place uses ``ask``, and ``safely`` around everything else of ours.
    """

    module: ClassVar[str]
    """The library's top-level package: its submodules are half made while they are imported."""
    kind: ClassVar[str]
    """What its pools are published as: ``db.asyncpg``."""

    def __init__(self, book: PoolBook, faults: Faults) -> None:
        self.book = book
        self._faults = faults
        self._patches: list[Patch | Chore] = []
        self._uses: dict[int, Use] = {}
        """By the id of what is in use."""
        self._is_on = False

    def arrived(self, module: ModuleType) -> None:
        """The library is there. One that has changed too much is left alone, which is said once."""
        self._is_on = True
        try:
            self.patch(module)
        except Exception as error:
            self.unpatch()
            self._faults.report(f"pools.{self.module}", error)

    def patch(self, module: ModuleType) -> None:
        """Replace what leads to the pools in ``module``. May raise."""
        raise NotImplementedError

    def name_of(self, pool: Any) -> str:
        """Where ``pool`` leads (host, port, database), never who connects, nor how."""
        raise NotImplementedError

    def level_of(self, pool: Any) -> Level | None:
        """How full ``pool`` is, as far as it says so; None once it is closed. From any thread."""
        raise NotImplementedError

    def keep(self, patch: Patch | Chore) -> None:
        """Have ``patch`` undone by ``unpatch``."""
        self._patches.append(patch)

    def unpatch(self) -> None:
        """Put everything back; what somebody has put theirs around passes on untouched."""
        self._is_on = False
        while self._patches:
            self._patches.pop().undo()

    def meter_of(self, pool: Any) -> Meter | None:
        """The meter of ``pool``, which keeps it as an attribute; None where there is no room."""
        attributes: dict[str, Any] | None = getattr(pool, "__dict__", None)
        if attributes is None:
            return None
        meter: Meter | None = attributes.get(METER)
        if meter is None or meter.book is not self.book or meter.is_forgotten:
            meter = self.book.meter(pool, self.name_of(pool), self.kind, self.level_of)
            attributes[METER] = meter
        return meter

    def ask(self, pool: Any) -> Use | None:
        """Somebody wants something from ``pool``; None where it is not measured.

        To be called by what stands in for the library's function, for whose caller to be seen.
        """
        if not self._is_on:
            return None
        try:
            meter = self.meter_of(pool)
            return None if meter is None else meter.ask()
        except Exception as error:
            self._failed(error)
            return None

    def acquiring(
        self,
        original: Function,
        *,
        thing: Callable[[Any], object] | None = None,
        reason: Callable[[BaseException], BaseException] | None = None,
        skips: Callable[[Any], bool] | None = None,
    ) -> Function:
        """What stands in for the function, of either colour, that takes something out of a pool.

        ``thing`` says of what it returns what will be given back, if that is something else;
        ``reason`` of an error what it comes from; ``skips`` is true of pools not to be measured.
        """
        ask = self.ask
        took = self.took

        @wraps(original)
        async def acquire_async(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            use = ask(pool) if skips is None or not skips(pool) else None
            if use is None:
                return await original(pool, *arguments, **keywords)
            try:
                taken = await original(pool, *arguments, **keywords)
            except BaseException as error:
                self.failed(use, error, reason)
                raise
            took(use, taken if thing is None else thing(taken))
            return taken

        @wraps(original)
        def acquire(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            use = ask(pool) if skips is None or not skips(pool) else None
            if use is None:
                return original(pool, *arguments, **keywords)
            try:
                taken = original(pool, *arguments, **keywords)
            except BaseException as error:
                self.failed(use, error, reason)
                raise
            took(use, taken if thing is None else thing(taken))
            return taken

        return acquire_async if iscoroutinefunction(original) else acquire

    def opening(
        self,
        original: Function,
        *,
        pool_of: Callable[[Any], Any] | None = None,
        skips: Callable[[Any], bool] | None = None,
    ) -> Function:
        """What stands in for the function, of either colour, by which a pool connects.

        ``pool_of`` says whose that is, of a first argument that is no pool itself, or None where
        that is not measured; ``skips`` is true of one for which no pool connects.
        """

        def opened(owner: Any, began: float) -> None:
            self.opened(owner if pool_of is None else pool_of(owner), began)

        @wraps(original)
        async def connect_async(owner: Any, *arguments: Any, **keywords: Any) -> Any:
            if skips is not None and skips(owner):
                return await original(owner, *arguments, **keywords)
            began = self.book.now()
            with making():
                made = await original(owner, *arguments, **keywords)
            opened(owner, began)
            return made

        @wraps(original)
        def connect(owner: Any, *arguments: Any, **keywords: Any) -> Any:
            if skips is not None and skips(owner):
                return original(owner, *arguments, **keywords)
            began = self.book.now()
            with making():
                made = original(owner, *arguments, **keywords)
            opened(owner, began)
            return made

        return connect_async if iscoroutinefunction(original) else connect

    def closing(self, original: Function) -> Function:
        """What stands in for the function, of either colour, that closes a pool."""

        @wraps(original)
        async def close_async(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            try:
                return await original(pool, *arguments, **keywords)
            finally:
                self.closed(pool)

        @wraps(original)
        def close(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            try:
                return original(pool, *arguments, **keywords)
            finally:
                self.closed(pool)

        return close_async if iscoroutinefunction(original) else close

    def releasing(self, original: Function) -> Function:
        """What stands in for the function, of either colour, that gives its argument back."""
        gave_back = self.gave_back

        @wraps(original)
        async def release_async(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            gave_back(arguments[0] if arguments else _first(keywords))
            return await original(pool, *arguments, **keywords)

        @wraps(original)
        def release(pool: Any, *arguments: Any, **keywords: Any) -> Any:
            gave_back(arguments[0] if arguments else _first(keywords))
            return original(pool, *arguments, **keywords)

        return release_async if iscoroutinefunction(original) else release

    def took(self, use: Use, thing: object) -> None:
        """``use`` has got ``thing``, which is to be known when it is given back."""
        try:
            use.got()
            uses, key = self._uses, id(thing)
            if key in uses:  # whoever had that is gone, and never gave it back
                uses[key].release()
            uses[key] = use
        except Exception as error:
            self._failed(error)

    def gave_back(self, thing: object) -> None:
        """``thing`` is no longer in use, whether or not it still is any good."""
        try:
            use = self._uses.pop(id(thing), None)
            if use is not None:  # else it was taken unmeasured
                use.release()
        except Exception as error:
            self._failed(error)

    def lasts(self, thing: object) -> None:
        """``thing``, which is in use, may be held for as long as whoever has it likes."""
        use = self._uses.get(id(thing))
        if use is not None:
            use.lasts()

    def tidy_up(self) -> None:
        """Forget what has gone with its pool, without having been given back."""
        if len(self._uses) > _MANY:
            gone = [key for key, use in list(self._uses.items()) if use not in use.meter.live]
            for key in gone:
                self._uses.pop(key, None)

    def opened(self, pool: Any, began: float) -> None:
        """Something new has been made for ``pool``, begun at that moment of the book's clock."""
        try:
            meter = self.meter_of(pool)
            if meter is not None:
                meter.opened(self.book.now() - began)
        except Exception as error:
            self._failed(error)

    def closed(self, pool: Any) -> None:
        """``pool`` is closed. It may well outlive that: in cycles, until they are collected.

        Were it used once more, it would be another.
        """
        try:
            meter: Meter | None = getattr(pool, METER, None)
            if meter is not None:
                delattr(pool, METER)
                meter.close()
        except Exception as error:
            self._failed(error)

    def belongs(self, thing: Any, pool: Any) -> None:
        """``thing`` is ``pool``'s, which its library does not have it know: see ``pool_of``."""
        try:
            vars(thing)[_POOL] = ref(pool)
        except Exception as error:
            self._failed(error)

    def pool_of(self, thing: Any) -> Any:
        """The pool that ``thing`` has been said to belong to, while that is there; or None."""
        pool = getattr(thing, _POOL, None)
        return None if pool is None else pool()

    def failed(
        self,
        use: Use,
        error: BaseException,
        reason: Callable[[BaseException], BaseException] | None = None,
    ) -> None:
        """``use`` came to nothing by ``error``, or by what ``reason`` says of that.

        Safe to call on the way out of the library's function: its error is what has to get out.
        """
        try:
            use.failed(error if reason is None else reason(error))
        except Exception as ours:
            self._failed(ours)

    def safely(self, note: Callable[[], None]) -> None:
        """Call ``note``; what goes wrong in there is no concern of the library's."""
        try:
            note()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        part = f"pools.{self.module}"
        self._faults.report(part, error)
        if self._faults.is_off(part):
            self._is_on = False


def _first(keywords: dict[str, Any]) -> object:
    return next(iter(keywords.values()), None)
