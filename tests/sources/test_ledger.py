"""The request ledger: phases add up to the duration, whatever an app does with its time."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from contextvars import Context, copy_context
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from loopscope import Loopscope, watch_pool
from loopscope.agent import stop_agent
from loopscope.sources.chores import CHORES
from loopscope.sources.ledger import current
from tests.harness import Message, Server, call, http_scope, label_sets, published

pytestmark = [pytest.mark.anyio, pytest.mark.real_time]

DURATION = "http_server_request_duration_seconds_sum"
PHASE = "loopscope_request_phase_seconds_total"
NAP = 0.05

Endpoint = Callable[[Request], Awaitable[Response]]


def service(endpoint: Endpoint, *middleware: type[BaseHTTPMiddleware]) -> Loopscope:
    routes = [Route("/", endpoint, methods=["GET", "POST"])]
    return Loopscope(Starlette(routes=routes, middleware=[Middleware(m) for m in middleware]))


def phases() -> dict[str, float]:
    """Seconds by phase, of all requests so far; they have to add up to the durations."""
    seconds = {each["phase"]: published(PHASE, **each) for each in label_sets(PHASE)}
    background = seconds.pop("background", 0.0)
    assert sum(seconds.values()) == pytest.approx(published(DURATION))
    assert min(seconds.values()) > -1e-9
    return {**seconds, "background": background}


def burn(seconds: float) -> None:
    """Hold the loop."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


def slowed(seconds: float) -> Endpoint:
    """Computes, sleeps, computes: a third of the time each."""

    async def endpoint(request: Request) -> Response:
        burn(seconds)
        await asyncio.sleep(seconds)
        burn(seconds)
        return PlainTextResponse("done")

    return endpoint


async def test_running_and_awaiting_are_told_apart() -> None:
    """What the app computes is loop_run, what it awaits without further clues is await_other."""
    await call(service(slowed(NAP)))
    seconds = phases()
    assert seconds["loop_run"] >= 2 * NAP
    assert seconds["await_other"] + seconds.get("loop_wait", 0.0) >= 0.9 * NAP
    assert seconds["await_other"] < seconds["loop_run"]


async def test_a_request_that_never_waits_only_runs() -> None:
    """Its duration is its loop_run, to the last digit."""

    async def endpoint(request: Request) -> Response:
        burn(0.005)
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert phases()["loop_run"] == pytest.approx(published(DURATION), rel=1e-6)


async def test_who_is_held_up_by_others_waits_for_the_loop() -> None:
    """A sleep that was over long ago, while others computed, is loop_wait from then on."""
    held: list[float] = []

    async def endpoint(request: Request) -> Response:
        began = time.perf_counter()
        await asyncio.sleep(NAP)
        held.append(time.perf_counter() - began - NAP)
        return PlainTextResponse("done")

    request = asyncio.create_task(call(service(endpoint)))
    await asyncio.sleep(NAP / 2)
    burn(4 * NAP)
    await request
    seconds = phases()
    assert seconds["loop_wait"] == pytest.approx(held[0], rel=0.1)
    assert seconds["await_other"] == pytest.approx(NAP, rel=0.1)


async def test_a_request_that_goes_on_waiting_is_no_victim() -> None:
    """While others hold the loop a request may be waiting for something that takes longer yet."""

    async def endpoint(request: Request) -> Response:
        await asyncio.sleep(6 * NAP)
        return PlainTextResponse("done")

    request = asyncio.create_task(call(service(endpoint)))
    await asyncio.sleep(0.01)
    burn(3 * NAP)
    await request
    seconds = phases()
    assert seconds.get("loop_wait", 0.0) < seconds["await_other"] / 10


async def test_many_requests_wait_for_each_other() -> None:
    """With 100 at a time, waiting for the loop is told from sleeping to a few per cent."""
    late: list[float] = []

    async def endpoint(request: Request) -> Response:
        began = time.perf_counter()
        await asyncio.sleep(2 * NAP)
        late.append(time.perf_counter() - began - 2 * NAP)
        burn(0.002)
        return PlainTextResponse("done")

    app = service(endpoint)
    await asyncio.gather(*(call(app) for _ in range(100)))
    seconds = phases()
    assert seconds["loop_run"] >= 100 * 0.002
    assert seconds["loop_wait"] == pytest.approx(sum(late), rel=0.1)
    assert seconds["await_other"] == pytest.approx(100 * 2 * NAP, rel=0.05)


def staying(server: Server) -> Callable[[], Awaitable[Message]]:
    """The ``receive`` of a client that does not leave."""

    async def receive() -> Message:
        if not server.incoming:
            await asyncio.Event().wait()
        return await server.receive()

    return receive


async def leaf(computing: float, sleeping: float) -> None:
    burn(computing)
    await asyncio.sleep(sleeping)


async def gathered() -> None:
    await asyncio.gather(leaf(0.02, NAP), leaf(0.02, NAP / 2))


async def grouped() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(leaf(0.02, NAP))
        group.create_task(leaf(0.02, NAP / 2))


async def grouped_by_anyio() -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(leaf, 0.02, NAP)
        group.start_soon(leaf, 0.02, NAP / 2)


async def shielded() -> None:
    await asyncio.wait_for(asyncio.shield(gathered()), 10)


async def within_a_task() -> None:
    await asyncio.create_task(gathered())


@pytest.mark.parametrize(
    "work", [gathered, grouped, grouped_by_anyio, shielded, within_a_task], ids=lambda w: w.__name__
)
async def test_what_its_tasks_run_is_the_requests(work: Callable[[], Awaitable[None]]) -> None:
    """Steps of tasks a request made are its loop_run, and only what is left is waiting."""

    async def endpoint(request: Request) -> Response:
        await work()
        return PlainTextResponse("done")

    await call(service(endpoint))
    seconds = phases()
    assert seconds["loop_run"] >= 0.04
    assert published("loopscope_request_tasks_sum") >= 2
    assert published("loopscope_request_task_seconds_total") > seconds["await_other"]
    assert published("loopscope_request_tasks_outliving_total") == 0


async def test_under_base_http_middleware_the_endpoint_is_measured_all_the_same() -> None:
    """BaseHTTPMiddleware runs the rest of the app in a task of its own."""

    class Passing(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

    await call(service(slowed(NAP), Passing, Passing))
    seconds = phases()
    assert seconds["loop_run"] >= 2 * NAP
    assert seconds["await_other"] < seconds["loop_run"]
    assert published("loopscope_request_longest_step_seconds_sum") >= NAP


async def test_a_task_that_outlives_its_request_is_counted_and_no_part_of_it() -> None:
    """Fired and forgotten: nothing it does later changes what the request took."""
    ended: list[asyncio.Task[None]] = []

    async def endpoint(request: Request) -> Response:
        ended.append(asyncio.create_task(leaf(0.0, NAP)))
        await asyncio.sleep(0)
        return PlainTextResponse("done")

    await call(service(endpoint))
    before = phases()
    assert published("loopscope_request_tasks_outliving_total") == 1
    await ended[0]
    assert phases() == before


async def test_a_failing_task_fails_as_ever() -> None:
    """Exceptions, cancellation and results of tasks pass through untouched."""
    seen: list[object] = []

    async def fail() -> None:
        raise LookupError("no")

    async def stop() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            seen.append("cleaned up")

    async def endpoint(request: Request) -> Response:
        failing, stopped = asyncio.create_task(fail()), asyncio.create_task(stop(), name="mine")
        await asyncio.sleep(0.01)
        stopped.cancel()
        seen.extend(await asyncio.gather(failing, stopped, return_exceptions=True))
        seen.append(stopped.get_name())
        seen.append(getattr(stopped.get_coro(), "__qualname__", ""))
        return PlainTextResponse("done")

    await call(service(endpoint))
    kinds = [type(each) for each in seen[1:3]]
    assert seen[0] == "cleaned up"
    assert kinds == [LookupError, asyncio.CancelledError]
    assert seen[3] == "mine"
    assert str(seen[4]).endswith("stop")
    phases()


async def test_a_task_shows_its_coroutine() -> None:
    """Whoever asks a task of a request for its coroutine finds all that a coroutine has."""
    coroutine = leaf(0.0, 0.0)
    names = [name for name in dir(coroutine) if name.startswith("cr_") or name.endswith("name__")]
    seen: list[list[object]] = []

    async def endpoint(request: Request) -> Response:
        task = asyncio.create_task(coroutine)
        seen.extend([getattr(of, name) for name in names] for of in (task.get_coro(), coroutine))
        await task
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert seen[0] == seen[1]
    assert published("loopscope_request_tasks_sum") == 1


class Compiled(Coroutine[Any, Any, None]):
    """A coroutine of another make: it has no name, and attributes of its own."""

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self.coroutine = coroutine
        self.colour = "red"

    def send(self, value: Any, /) -> Any:
        return self.coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self.coroutine.throw(*error)

    def close(self) -> None:
        self.coroutine.close()

    def __await__(self) -> Any:
        return self.coroutine.__await__()


async def test_any_kind_of_coroutine_is_followed() -> None:
    """And what is particular to it is there to be asked for."""
    seen: list[object] = []

    async def endpoint(request: Request) -> Response:
        task = asyncio.create_task(Compiled(leaf(NAP, 0.0)))
        shown = task.get_coro()
        seen.extend(getattr(shown, name, "") for name in ("colour", "__qualname__", "taste"))
        await task
        return PlainTextResponse("done")

    await call(service(endpoint))
    assert seen == ["red", "Compiled", ""]
    assert published("loopscope_request_tasks_sum") == 1
    assert phases()["loop_run"] >= NAP


async def test_an_exception_of_a_task_is_freed_with_the_task() -> None:
    """Nothing of ours keeps it, or what its traceback holds, longer than it is kept without us."""

    class Held:
        pass

    kept: list[weakref.ref[Held]] = []

    async def fail(held: Held) -> None:
        kept.append(weakref.ref(held))
        await asyncio.sleep(10)

    async def endpoint(request: Request) -> Response:
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.create_task(fail(Held())), 0.01)
        return PlainTextResponse("done")

    app = service(endpoint)
    gc.disable()
    try:
        await call(app.app)
        await call(app)
        await call(app.app)  # since Python 3.12 the latest one is there until the next
        assert (kept[1]() is None) == (kept[0]() is None)
    finally:
        gc.enable()


async def test_the_services_own_task_factory_goes_on_making_tasks() -> None:
    """Set before or after us, it makes every task, and it is what the loop says it has.

    Unless that is an eager one: then it is one like it, and putting it back changes nothing.
    """
    loop = asyncio.get_running_loop()
    made: list[str] = []

    def factory(name: str) -> Callable[..., asyncio.Task[Any]]:
        def make(loop: asyncio.AbstractEventLoop, coroutine: Any, **more: Any) -> Any:
            made.append(name)
            return asyncio.Task(coroutine, loop=loop, **more)

        return make

    async def endpoint(request: Request) -> Response:
        await asyncio.gather(leaf(0.02, 0.001))
        return PlainTextResponse("done")

    app = service(endpoint)
    before = loop.get_task_factory()
    first, second = factory("first"), factory("second")
    loop.set_task_factory(first)
    await call(app)
    assert loop.get_task_factory() is first
    loop.set_task_factory(second)
    assert loop.get_task_factory() is second
    await call(app)
    loop.set_task_factory(before)
    again = loop.get_task_factory()
    assert getattr(again, "__code__", None) is getattr(before, "__code__", None)
    loop.set_task_factory(again)
    assert loop.get_task_factory() is again
    assert made == ["first", "second"]
    assert published("loopscope_request_tasks_sum") == 2
    assert phases()["loop_run"] >= 0.04
    with pytest.raises(TypeError):
        loop.set_task_factory("no factory")  # type: ignore[arg-type]


async def test_a_slow_reader_is_client_download() -> None:
    """Time in which the server could not take more is the client's."""

    async def endpoint(request: Request) -> Response:
        async def body() -> Any:
            for _ in range(3):
                yield b"x"

        return StreamingResponse(body())

    async def reading(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(NAP)

    server = Server(on_send=reading)
    await service(endpoint)(http_scope("/"), staying(server), server.send)
    seconds = phases()
    assert seconds["client_download"] >= 0.9 * 3 * NAP
    assert max(seconds, key=seconds.__getitem__) == "client_download"
    assert "client_upload" not in seconds


async def test_a_slow_writer_is_client_upload() -> None:
    """Time in which the app waited for the rest of the body is the client's as well."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(str(len(await request.body())))

    parts = [{"type": "http.request", "body": b"x" * 10, "more_body": n < 2} for n in range(3)]

    async def receive() -> Message:
        await asyncio.sleep(NAP)
        return parts.pop(0)

    server = Server()
    await service(endpoint)(http_scope("/", "POST"), receive, server.send)
    seconds = phases()
    assert server.body == b"30"
    assert seconds["client_upload"] >= 0.9 * 3 * NAP
    assert max(seconds, key=seconds.__getitem__) == "client_upload"


async def test_a_wait_that_a_task_of_a_callback_cuts_short_is_shared_out_too() -> None:
    """Such a task is made between two steps of the request, long after the latest."""
    tasks: list[asyncio.Task[None]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        def make() -> None:
            tasks.append(asyncio.create_task(leaf(0.0, 0.0)))

        await asyncio.sleep(0)
        asyncio.get_running_loop().call_later(NAP, make)
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})

    async def receive() -> Message:
        await asyncio.sleep(2 * NAP)
        return {"type": "http.request", "body": b"", "more_body": False}

    await Loopscope(app)(http_scope("/", "POST"), receive, Server().send)
    assert phases()["client_upload"] >= 0.9 * 2 * NAP
    assert published("loopscope_request_tasks_sum") == len(tasks) == 1
    await asyncio.gather(*tasks)


async def test_outside_of_its_steps_nothing_enters_a_phase_unseen() -> None:
    """Else the whole of a gap would be in it, and not only what came after that moment."""
    inside: list[bool] = []

    def ask() -> None:
        request = current()
        assert request is not None
        inside.append(request.own_gaps() is not None)

    async def endpoint(request: Request) -> Response:
        ask()
        asyncio.get_running_loop().call_soon(ask)
        await asyncio.sleep(NAP)
        await asyncio.create_task(asking())
        return PlainTextResponse("done")

    async def asking() -> None:
        ask()

    await call(service(endpoint))
    assert inside == [True, False, True]


async def test_waiting_to_hear_that_the_client_left_is_no_upload() -> None:
    """Once the body is there, whoever listens for a disconnect waits for nothing."""

    async def endpoint(request: Request) -> Response:
        async def body() -> Any:
            yield b"first"
            await asyncio.sleep(NAP)
            yield b"second"

        return StreamingResponse(body())

    server = Server()
    await service(endpoint)(http_scope("/"), staying(server), server.send)
    assert "client_upload" not in phases()


async def test_a_cancelled_request_adds_up_too() -> None:
    """Cut off in the middle of a wait, the wait counts as far as it went."""

    async def endpoint(request: Request) -> Response:
        await asyncio.gather(leaf(0.01, 10), leaf(0.01, 10))
        return PlainTextResponse("never")

    request = asyncio.create_task(call(service(endpoint)))
    await asyncio.sleep(NAP)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert phases()["loop_run"] >= 0.02


async def test_what_a_request_leaves_running_does_not_keep_it() -> None:
    """Neither a task nor a timer that it started holds on to its scope, its server or its body."""

    class Held:
        pass

    kept: list[weakref.ref[Any]] = []
    started: list[Any] = []

    async def endpoint(request: Request) -> Response:
        held = request.scope["held"]
        kept.append(weakref.ref(held))
        started.append(asyncio.create_task(asyncio.sleep(10)))
        await asyncio.sleep(0.001)
        started.append(asyncio.get_running_loop().call_later(10, id, 0))
        return PlainTextResponse("done")

    app = service(endpoint)
    for _ in range(2):  # the thread's latest request is kept, in place of the one before
        await call(app, held=Held())
    gc.collect()
    for each in started:
        each.cancel()
    assert kept[0]() is None


async def asked(scope: Any, receive: Any, send: Any) -> None:
    """Asks whose it is before it first waits, if it does."""
    asyncio.create_task(leaf(0.0, 0.0))  # noqa: RUF006
    if scope["waits"]:
        await asyncio.sleep(0.002)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})


@pytest.mark.parametrize("waits", [False, True])
async def test_a_request_that_calls_another_app_stays_itself(waits: bool) -> None:
    """What it starts after that call, in its own task, is its own again."""
    inner = Loopscope(asked)

    async def endpoint(request: Request) -> Response:
        await asyncio.sleep(0)
        whose = current()
        await call(inner, waits=waits)
        assert current() is whose is not None
        await gathered()
        return PlainTextResponse("done")

    await call(service(endpoint), "/")
    assert published("loopscope_request_tasks_count") == 2
    assert published("loopscope_request_tasks_sum") == 1 + 2
    assert published(PHASE, phase="loop_run") >= 0.04


async def test_one_request_ended_within_another_takes_nothing_from_it() -> None:
    """A call that was given up, and is closed by whoever lets go of it last, is not theirs."""

    async def never(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.Event().wait()

    server = Server()
    given_up: Any = Loopscope(never)(http_scope("/"), server.receive, server.send)
    Context().run(given_up.send, None)

    async def endpoint(request: Request) -> Response:
        await asyncio.sleep(0)
        whose = current()
        given_up.close()
        assert current() is whose is not None
        return PlainTextResponse("done")

    assert (await call(service(endpoint))).body == b"done"


async def test_an_answer_that_somebody_else_sends_adds_up() -> None:
    """A task that has nothing of the request's context answers it; what follows is background."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def answer() -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"done"})

        task = asyncio.create_task(answer(), context=Context())
        await asyncio.sleep(NAP)
        await task

    await call(Loopscope(app))
    assert phases()["background"] >= 0.9 * NAP


async def test_the_next_request_is_no_task_of_the_one_before() -> None:
    """A server that has one waiting (pipelining) starts it as it sends the last byte."""
    app = service(slowed(0.001))
    following: list[asyncio.Task[Server]] = []

    async def complete(message: Message) -> None:
        if message["type"] == "http.response.body":
            following.append(asyncio.create_task(call(app)))

    server = Server(on_send=complete)
    await app(http_scope("/"), staying(server), server.send)
    await following[0]
    assert published("http_server_request_duration_seconds_count") == 2
    assert published("loopscope_request_tasks_sum") == 0


async def test_tasks_made_are_counted() -> None:
    """Every task of the loop counts, whoever made it."""
    await call(service(slowed(0.001)))
    before = published("asyncio_tasks_created_total")
    await asyncio.gather(*(leaf(0, 0) for _ in range(10)))
    assert published("asyncio_tasks_created_total") == before + 10


async def test_stopping_leaves_the_loop_as_it_was() -> None:
    """No factory and no stand-in of ours is left on the loop."""
    loop = asyncio.get_running_loop()
    before = (dict(vars(loop)), loop.get_task_factory())
    app = service(slowed(0.02))
    await call(app)
    stop_agent()
    after = (dict(vars(loop)), loop.get_task_factory())
    changed = {name for name in after[0] if after[0][name] is not before[0].get(name)}
    assert not changed & {
        "call_soon",
        "call_later",
        "create_task",
        "set_task_factory",
        "get_task_factory",
    }
    assert after[1] is before[1]


async def test_what_others_have_put_on_the_loop_is_there_afterwards() -> None:
    """Whoever has replaced a method of that very loop keeps theirs, and it is called meanwhile."""
    loop = asyncio.get_running_loop()
    called: list[str] = []

    def replacement(name: str) -> Callable[..., Any]:
        original = getattr(loop, name)

        def theirs(*arguments: Any, **options: Any) -> Any:
            called.append(name)
            return original(*arguments, **options)

        return theirs

    names = ("call_soon", "call_later", "set_task_factory", "get_task_factory")
    replaced = {name: replacement(name) for name in names}
    vars(loop).update(replaced)
    try:
        await call(service(slowed(0.01)))
        stop_agent()
        assert {name: vars(loop).get(name) for name in names} == replaced
        assert set(called) == set(names)
    finally:
        for name in names:
            del vars(loop)[name]


async def test_after_stopping_a_busy_loop_is_left_alone() -> None:
    """Even where our selector cannot be taken out, for somebody has put theirs around it."""
    loop = asyncio.get_running_loop()
    await call(service(slowed(0.001)))
    selector: Any = getattr(loop, "_selector", None)
    if selector is None:
        return
    select = selector.select
    selector.select = lambda timeout=None: select(timeout)
    stop_agent()
    for _ in range(3):
        burn(0.01)
        await asyncio.sleep(0.001)
    assert not {"call_soon", "call_later"} & set(vars(loop))


@pytest.mark.parametrize("fails", [False, True])
async def test_a_wait_that_a_callback_ends_lasts_until_then(fails: bool) -> None:
    """And no shorter, though it began in a step of the request and ends in none; nor any longer."""

    class Pool:
        def loopscope_pool(self) -> dict[str, float]:
            return {"capacity": 1}

    async def endpoint(request: Request) -> Response:
        await asyncio.sleep(0)
        loop = asyncio.get_running_loop()
        acquiring = watched.acquiring()
        acquired = acquiring.__enter__()
        leave = acquiring.__exit__
        if fails:
            loop.call_later(3 * NAP, leave, TimeoutError, TimeoutError(), None)
        else:
            loop.call_later(3 * NAP, acquired.got)
        await asyncio.sleep(4 * NAP)
        leave(None, None, None)
        return PlainTextResponse("done")

    pool = Pool()
    watched = watch_pool("licences", pool)
    await call(service(endpoint))
    watched.unwatch()
    seconds = phases()
    assert seconds["pool_wait"] > 2 * seconds["await_other"] > NAP


@pytest.mark.usefixtures("a_chore")
async def test_a_chore_that_waits_for_a_pool_waits_for_it() -> None:
    """Also where tasks begin eagerly, and so its wait in a step of the request."""
    semaphore = asyncio.Semaphore(1)
    watched = watch_pool("tokens", semaphore)

    async def endpoint(request: Request) -> Response:
        await asyncio.sleep(0)
        await semaphore.acquire()
        asyncio.get_running_loop().call_later(NAP, semaphore.release)
        await asyncio.shield(tidy_up(semaphore))
        return PlainTextResponse("done")

    await call(service(endpoint))
    watched.unwatch()
    assert phases()["pool_wait"] > 0.5 * NAP


async def tidy_up(semaphore: asyncio.Semaphore) -> None:
    """Waits in a pool, and for a little while more."""
    async with semaphore:
        await asyncio.sleep(0)


@pytest.fixture
def a_chore() -> Iterator[None]:
    """While ``tidy_up`` is one."""
    CHORES.append(tidy_up.__code__)
    yield
    CHORES.remove(tidy_up.__code__)


async def test_callbacks_may_be_anything_that_can_be_called() -> None:
    """One that cannot be asked for attributes is called as without us."""
    called: list[str] = []

    class Proxy:
        def __call__(self) -> None:
            called.append("called")

        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("not now")

    async def endpoint(request: Request) -> Response:
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(Proxy(), context=copy_context())
        await asyncio.sleep(0)
        return PlainTextResponse("done")

    assert (await call(service(endpoint))).body == b"done"
    assert called == ["called"]
