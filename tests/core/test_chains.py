"""Await chains: of real coroutines on real loops, read while they wait."""

from __future__ import annotations

import asyncio
import gc
import struct
import sys
import threading
import time
import types
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import asyncpg
import httpx
import pytest
from fastapi import Depends, FastAPI, Request

from loopscope.core import chains
from loopscope.core.chains import Chain, Wait, locate, name, walk
from loopscope.core.stacks import UserCode

USERS = UserCode()
SINCE_3_12 = sys.version_info >= (3, 12)


def names(chain: Chain) -> list[str]:
    """The functions of a chain, outermost first, without the test they were defined in."""
    return [code.co_qualname.rpartition("<locals>.")[2] for code, _ in chain.stack]


async def settled(coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has come to wait."""
    task = asyncio.create_task(coroutine)
    for _ in range(5):
        await asyncio.sleep(0)
    return task


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def chain_of(coroutine: Coroutine[Any, Any, Any]) -> Chain:
    """The chain of ``coroutine`` once it waits; then it is cancelled."""
    task = await settled(coroutine)
    chain = walk(coroutine)
    await cancelled(task)
    return chain


async def wait_of(coroutine: Coroutine[Any, Any, Any]) -> Wait:
    return locate(await chain_of(coroutine), USERS)


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


@types.coroutine
def suspend() -> Generator[str, Any, Any]:
    return (yield "suspended")


def library(source: str, **known: Any) -> dict[str, Any]:
    """What a module of an installed package defines."""
    file = f"{Path(anyio.__file__).parents[1]}/lib.py"
    namespace: dict[str, Any] = {**known, "asyncio": asyncio, "wraps": wraps}
    exec(compile(source, file, "exec"), namespace)
    return namespace


# walking


@pytest.mark.anyio
async def test_a_chain_is_outermost_first_with_the_lines_that_wait() -> None:
    """And each line is the one the frame itself would give."""

    async def inner() -> None:
        before = 1
        await forever()
        assert before

    async def outer() -> None:
        await inner()

    coroutine = outer()
    task = await settled(coroutine)
    chain = walk(coroutine)
    assert names(chain) == ["outer", "inner", "forever"]
    assert chain.stack[0] == (outer.__code__, outer.__code__.co_firstlineno + 1)
    assert chain.stack[1] == (inner.__code__, inner.__code__.co_firstlineno + 2)
    assert chain.leaf == "Future"
    await cancelled(task)


def test_every_line_is_the_one_its_frame_gives() -> None:
    """Lines are remembered by instruction: a function that waits in many places has many."""
    body = "\n".join(f"    await suspend() if {at} % 3 else None\n\n" for at in range(300))
    namespace: dict[str, Any] = {"suspend": suspend}
    exec(f"async def wait_often():\n{body}", namespace)
    for _ in range(2):
        coroutine = namespace["wait_often"]()
        for _ in range(200):
            coroutine.send(None)
            assert walk(coroutine).stack[0][1] == coroutine.cr_frame.f_lineno
        coroutine.close()


def test_lines_of_code_that_came_and_went_are_not_mixed_up() -> None:
    """Modules are reloaded, and Python uses an address again as soon as it is free."""
    for at in range(300):
        namespace: dict[str, Any] = {"suspend": suspend}
        exec("\n" * at + "async def wait(): await suspend()", namespace)
        coroutine = namespace["wait"]()
        coroutine.send(None)
        assert walk(coroutine).stack[0] == (coroutine.cr_code, at + 1)
        coroutine.close()
        del namespace, coroutine


def test_remembered_lines_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that makes code as it goes must not make us grow with it."""
    monkeypatch.setattr(chains, "_MAX_PLACES", 10)
    for at in range(50):
        namespace: dict[str, Any] = {"suspend": suspend}
        exec("\n" * at + "async def wait(): await suspend()", namespace)
        coroutine = namespace["wait"]()
        coroutine.send(None)
        assert walk(coroutine).stack[0][1] == at + 1
        coroutine.close()
        assert len(chains._places) <= 10


async def numbers() -> AsyncIterator[int]:
    await forever()
    yield 1


@asynccontextmanager
async def opened() -> AsyncIterator[None]:
    await forever()
    yield


@asynccontextmanager
async def closing_slowly() -> AsyncIterator[None]:
    try:
        yield
    finally:
        await forever()


class Lent:
    """An ``__await__`` that lends a coroutine's."""

    def __await__(self) -> Generator[Any, Any, None]:
        return forever().__await__()


class Delegating:
    """An ``__await__`` that is a generator."""

    def __await__(self) -> Generator[Any, Any, None]:
        yield from forever().__await__()


@types.coroutine
def old_style() -> Generator[Any, Any, None]:
    yield from forever().__await__()


async def iterating() -> None:
    async for _ in numbers():
        pass


async def iterating_by_hand() -> None:
    await anext(numbers())


async def iterating_with_default() -> None:
    await anext(numbers(), None)


async def entering() -> None:
    async with opened():
        pass


async def leaving() -> None:
    async with closing_slowly():
        pass


async def leaving_by_error() -> None:
    async with closing_slowly():
        raise ValueError


async def closing_a_generator() -> None:
    generator = closing_slowly.__wrapped__()  # type: ignore[attr-defined]
    await anext(generator)
    await generator.aclose()


async def lent() -> None:
    await Lent()


async def delegating() -> None:
    await Delegating()


async def through_a_generator() -> None:
    await old_style()


async def with_timeout() -> None:
    async with asyncio.timeout(60):
        await forever()


async def in_a_cancel_scope() -> None:
    with anyio.fail_after(60):
        await forever()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("function", "below"),
    [
        (iterating, ["numbers"]),
        (iterating_by_hand, ["numbers"]),
        (iterating_with_default, ["numbers"]),
        (entering, ["_AsyncGeneratorContextManager.__aenter__", "opened"]),
        (leaving, ["_AsyncGeneratorContextManager.__aexit__", "closing_slowly"]),
        (leaving_by_error, ["_AsyncGeneratorContextManager.__aexit__", "closing_slowly"]),
        (closing_a_generator, ["closing_slowly"]),
        (lent, []),
        (delegating, ["Delegating.__await__"]),
        (through_a_generator, ["old_style"]),
        (with_timeout, []),
        (in_a_cancel_scope, []),
    ],
)
async def test_a_chain_is_followed_through(
    function: Callable[[], Coroutine[Any, Any, None]], below: list[str]
) -> None:
    """Whatever stands between a coroutine and the future, the future is reached."""
    chain = await chain_of(function())
    assert names(chain) == [function.__name__, *below, "forever"]
    assert chain.leaf == "Future"


@pytest.mark.anyio
async def test_compiled_coroutines_are_passed_and_never_the_users() -> None:
    """Cython's frames have no lines, and sources named as if they were in the project.

    Looked at again they are the same frames, which is how the await profile knows a place.
    """

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Let a PostgreSQL client in, and never answer a query."""

        def message(kind: bytes, body: bytes) -> bytes:
            return kind + struct.pack("!i", len(body) + 4) + body

        (length,) = struct.unpack("!i", await reader.readexactly(4))
        await reader.readexactly(length - 4)
        writer.write(
            message(b"R", bytes(4))
            + message(b"S", b"server_version\x0016.0\x00")
            + message(b"K", bytes(8))
            + message(b"Z", b"I")
        )
        await reader.read()
        writer.close()

    async def report() -> None:
        await connection.fetch("select 1")

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    connection = await asyncpg.connect(
        host="127.0.0.1",
        port=server.sockets[0].getsockname()[1],
        user="u",
        password="p",
        database="d",
        ssl=False,
    )
    coroutine = report()
    task = await settled(coroutine)
    chain, again = walk(coroutine), walk(coroutine)
    connection.terminate()
    with pytest.raises(asyncpg.PostgresConnectionError):
        await task
    server.close()
    await server.wait_closed()
    assert names(chain)[:2] == ["report", "Connection.fetch"]
    assert chain.stack[-1][0].co_filename.endswith(".pyx")
    assert chain.stack[-1][1] == 0
    assert all(first is second for first, second in zip(chain.stack, again.stack, strict=True))
    assert chain.leaf == "Future"
    wait = locate(chain, USERS)
    assert wait.site.endswith("report")
    assert wait.callee == "Connection.fetch"


@pytest.mark.anyio
async def test_the_layers_of_a_framework_are_in_the_chain_and_not_at_fault() -> None:
    """Of a FastAPI service, the deepest function of its own is the site."""

    async def dependency() -> AsyncIterator[int]:
        yield 1

    async def service() -> None:
        await asyncio.sleep(60)

    app = FastAPI()

    @app.get("/")
    async def handler(request: Request, number: int = Depends(dependency)) -> None:
        await service()

    async def get() -> None:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(watched), base_url="http://test"
        ) as client:
            await client.get("/")

    coroutines: list[Any] = []

    def watched(*arguments: Any) -> Any:
        coroutines.append(app(*arguments))
        return coroutines[-1]

    task = await settled(get())
    while not any(call.cr_await for call in coroutines):
        await asyncio.sleep(0.001)
    chain = walk(coroutines[0])
    await cancelled(task)
    assert len(chain.stack) > 10
    assert names(chain)[-3:] == ["handler", "service", "sleep"]
    wait = locate(chain, USERS)
    assert wait.site.endswith(
        f"test_chains.py:{service.__code__.co_firstlineno + 1} {service.__qualname__}"
    )
    assert wait.callee == "sleep"


def test_recursion_keeps_the_innermost_frames() -> None:
    """They are the ones that say what is waited for."""

    async def down(depth: int) -> None:
        await (down(depth - 1) if depth else suspend())

    coroutine = down(200)
    coroutine.send(None)
    chain = walk(coroutine, limit=20)
    assert len(chain.stack) == 20
    assert names(chain)[-2:] == ["down", "suspend"]
    assert len(walk(coroutine).stack) == 100
    coroutine.close()


def test_another_thread_may_ask() -> None:
    """Of a coroutine that runs all the time, every answer is a true prefix of its chain."""
    stop = threading.Event()

    async def first() -> None:
        await suspend()

    async def second() -> None:
        await suspend()

    async def outer() -> None:
        while not stop.is_set():
            await first()
            await second()

    coroutine = outer()

    def drive() -> None:
        try:
            while True:
                coroutine.send(None)
        except StopIteration:
            pass

    line = outer.__code__.co_firstlineno
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=drive)
    thread.start()
    try:
        seen = {
            tuple((code.co_name, at) for code, at in walk(coroutine).stack) for _ in range(5000)
        }
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    called = {(stack[0][1], stack[1][0]) for stack in seen if len(stack) > 1}
    assert called <= {(line + 2, "first"), (line + 3, "second")}


# oddities


def test_what_is_not_suspended_has_a_short_chain_or_none() -> None:
    """Not begun: its first line. Running: its own frame. Finished: nothing."""
    taken: list[Chain] = []

    async def run() -> None:
        taken.append(walk(coroutine))

    async def outer() -> None:
        await run()

    coroutine = outer()
    assert names(walk(coroutine)) == ["outer"]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert names(taken[0]) == ["outer"]
    assert walk(coroutine) == Chain((), "")


class Hostile:
    """Whatever is asked of it, it raises."""

    def __getattribute__(self, attribute: str) -> Any:
        raise RuntimeError(attribute)


class Lying:
    """Claims to be a coroutine."""

    @property
    def cr_await(self) -> Any:
        raise AssertionError("the user's code was run")

    cr_code = cr_await


class Circle:
    """Awaits itself."""

    __slots__ = ("cr_await", "cr_code")

    def __init__(self) -> None:
        self.cr_await = self
        self.cr_code = Lent.__await__.__code__


class Iterating:
    """An ``__await__`` that is no generator."""

    def __await__(self) -> Iterator[str]:
        return iter(["suspended"])


@pytest.mark.parametrize("make", [lambda: None, int, str, object, Hostile, Lying, Circle])
def test_odd_objects_are_no_error(make: Callable[[], object]) -> None:
    """Whatever an app returns, or awaits; none of its code is run to find out."""
    odd = make()
    chain = walk(odd)
    assert len(chain.stack) in (0, 100)
    assert chain.leaf in ("", type(odd).__name__)
    assert isinstance(locate(chain, USERS), Wait)
    assert name(odd) in ("", type(odd).__name__)


class Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Anonymous(metaclass=Nameless):
    """An awaitable whose very type raises."""

    def __await__(self) -> Generator[Any, Any, None]:
        return self  # type: ignore[return-value]

    def __iter__(self) -> Anonymous:
        return self

    def __next__(self) -> str:
        return "suspended"


def test_what_was_found_before_an_oddity_stands() -> None:
    """The rest of the chain is as true as ever."""

    async def wait() -> None:
        await Anonymous()

    coroutine = wait()
    coroutine.send(None)
    chain = walk(coroutine)
    coroutine.close()
    assert names(chain) == ["wait"]
    assert chain.leaf == "unknown"
    assert name(Anonymous()) == "unknown"


def test_an_iterator_of_another_kind_is_named_by_its_type() -> None:
    """Nothing more can be known of it."""

    async def wait() -> None:
        await Iterating()  # type: ignore[misc]

    coroutine = wait()
    coroutine.send(None)
    assert walk(coroutine).leaf == "list_iterator"
    coroutine.close()


def test_no_frame_and_no_local_outlives_the_walk() -> None:
    """What a request held must be freed when the request ends, and by reference counts alone."""

    class Payload:
        pass

    async def handle(payload: Payload) -> None:
        await suspend()

    gc.disable()
    try:
        payload = Payload()
        known = weakref.ref(payload)
        coroutine = handle(payload)
        del payload
        coroutine.send(None)
        chain = walk(coroutine)
        coroutine.close()
        del coroutine
        assert known() is None
        assert names(chain) == ["handle", "suspend"]
    finally:
        gc.enable()


# where, and for what


@pytest.mark.anyio
async def test_the_callee_is_what_the_users_line_called() -> None:
    """Not what that one called in turn."""
    queue: asyncio.Queue[int] = asyncio.Queue()
    lock, event, limiter = asyncio.Lock(), anyio.Event(), anyio.CapacityLimiter(1)
    await lock.acquire()
    limiter.acquire_nowait()
    streams = anyio.create_memory_object_stream[int]()

    async def sleeping() -> None:
        await asyncio.sleep(60)

    async def getting() -> None:
        await queue.get()

    async def locking() -> None:
        async with lock:
            pass

    async def waiting() -> None:
        await event.wait()

    async def limiting() -> None:
        async with limiter:
            pass

    async def receiving() -> None:
        async for _ in streams[1]:
            pass

    async def grouping() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep, 60)

    for function, callee in [
        (sleeping, "sleep"),
        (getting, "Queue.get"),
        (locking, "Lock.acquire"),
        (waiting, "Event.wait"),
        (limiting, "CapacityLimiter.acquire"),
        (receiving, "MemoryObjectReceiveStream.receive"),
        (grouping, "TaskGroup.__aexit__"),
    ]:
        wait = await wait_of(function())
        line = function.__code__.co_firstlineno + 1
        assert wait.site.endswith(f"test_chains.py:{line} {function.__qualname__}")
        assert wait.callee == callee
    for stream in streams:
        stream.close()


@pytest.mark.anyio
async def test_waits_for_threads_are_named() -> None:
    """By the function that hands the work over, or, without one, by what is awaited."""
    loop = asyncio.get_running_loop()

    async def anyios() -> None:
        await anyio.to_thread.run_sync(time.sleep, 0.01)

    async def asyncios() -> None:
        await asyncio.to_thread(time.sleep, 0.01)

    async def executors() -> None:
        await loop.run_in_executor(None, time.sleep, 0.01)

    for function, callee in [
        (anyios, "run_sync"),
        (asyncios, "to_thread"),
        (executors, "concurrent.futures.Future"),
    ]:
        coroutine = function()
        task = await settled(coroutine)
        assert locate(walk(coroutine), USERS).callee == callee
        await task


@pytest.mark.anyio
async def test_a_wait_for_tasks_is_named_by_what_they_run() -> None:
    """``gather`` and ``shield`` make futures of their own, a task has a name of its own."""

    async def gathering() -> None:
        await asyncio.gather(forever(), forever())

    async def shielding() -> None:
        await asyncio.shield(inner)

    async def joining() -> None:
        await inner

    async def alone() -> None:
        await asyncio.get_running_loop().create_future()

    inner = await settled(forever())
    assert (await wait_of(gathering())).callee == "gather"
    assert (await wait_of(shielding())).callee == "shield"
    assert (await wait_of(alone())).callee == "Future"
    assert (await wait_of(joining())).callee == "task:forever"
    await cancelled(inner)


@pytest.mark.anyio
async def test_wait_for_says_what_it_waits_for_where_that_can_be_known() -> None:
    """Since Python 3.12; before, a task of its own stands between the two."""
    queue: asyncio.Queue[int] = asyncio.Queue()

    async def hurrying() -> None:
        await asyncio.wait_for(queue.get(), 60)

    assert (await wait_of(hurrying())).callee == ("Queue.get" if SINCE_3_12 else "wait_for")


@pytest.mark.anyio
async def test_wrappers_are_looked_through() -> None:
    """Nobody chose the name of a decorator's inner function, or of a context manager's method."""
    lib = library(
        "def retry(function):\n"
        "    @wraps(function)\n"
        "    async def wrapper(*args):\n"
        "        return await function(*args)\n"
        "    return wrapper\n"
        "class Pool:\n"
        "    @retry\n"
        "    async def fetch(self):\n"
        "        await asyncio.sleep(60)\n"
        "    @manager\n"
        "    async def acquire(self):\n"
        "        yield await asyncio.sleep(60)\n",
        manager=asynccontextmanager,
    )
    pool = lib["Pool"]()

    async def fetching() -> None:
        await pool.fetch()

    async def acquiring() -> None:
        async with pool.acquire():
            pass

    async def stacking() -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(pool.acquire())

    assert (await wait_of(fetching())).callee == "Pool.fetch"
    assert (await wait_of(acquiring())).callee == "Pool.acquire"
    assert (await wait_of(stacking())).callee == "AsyncExitStack.enter_async_context"


@pytest.mark.anyio
async def test_without_a_frame_of_the_users_the_innermost_one_speaks() -> None:
    """There is no site then, and nobody is accused."""
    assert await wait_of(asyncio.sleep(60)) == Wait("", "sleep")
    assert locate(Chain((), "gather"), USERS) == Wait("", "gather")


@pytest.mark.anyio
async def test_an_awaitable_written_in_python_is_named_by_its_class() -> None:
    """``__await__`` adds nothing to it."""
    lib = library("class Reply:\n    def __await__(self):\n        yield\n")

    async def wait() -> None:
        await lib["Reply"]()

    coroutine = wait()
    coroutine.send(None)
    assert locate(walk(coroutine), USERS).callee == "Reply"
    coroutine.close()


def test_names_are_bounded_and_hold_no_values() -> None:
    """A name ends up in labels; who makes functions by the thousand names them as they like."""
    long = "x" * 1000
    lib = library(
        f"class Reply:\n    def __await__(self):\n        yield\nasync def {long}(): await Reply()"
    )

    async def wait() -> None:
        await lib[long]()

    coroutine = wait()
    coroutine.send(None)
    assert locate(walk(coroutine), USERS).callee == long[:100]
    coroutine.close()
    assert name(type(long, (), {"__repr__": lambda _: "secret"})()) == long[:100]
