"""An application behaves the same with and without the agent (promise 5): a test per behaviour.

Each test runs the bare application and the wrapped one and compares what a server or a client saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import re
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest import mock

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from loopscope import Loopscope, SettingsError
from loopscope.agent import current_agent
from loopscope.core.faults import Faults
from loopscope.sources.watchdog import Watchdog
from tests.harness import Message, Server, call, http_scope, websocket_scope

pytestmark = pytest.mark.anyio

App = Callable[..., Any]
Observe = Callable[[App], Any]


async def same(app: App, observe: Observe) -> Any:
    """Whatever ``observe`` sees of ``app`` it must see of the wrapped one."""
    bare = await observe(app)
    assert await observe(Loopscope(app)) == bare
    return bare


async def respond(send: Any, body: bytes = b"done") -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


async def messages(app: App) -> list[Message]:
    server = Server()
    await app(http_scope(), server.receive, server.send)
    return server.sent


async def test_messages_reach_the_server_unchanged() -> None:
    """Every message, known or not, is passed on as it is and in order."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 201, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await send({"type": "http.response.invented", "odd": object})
        await send({"type": "http.response.body"})

    assert len(await same(app, messages)) == 4


async def test_malformed_messages_are_the_servers_business() -> None:
    """A message without a type raises what the server raises, not something of ours."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"no": "type"})

    async def observe(app: App) -> str:
        async def strict(message: Message) -> None:
            raise RuntimeError(f"bad message {message}")

        with pytest.raises(RuntimeError) as caught:
            await app(http_scope(), Server().receive, strict)
        return str(caught.value)

    await same(app, observe)


@pytest.mark.parametrize("odd", [{}, {"body": 1}, None])
async def test_whatever_the_server_gives_the_application_receives(odd: Any) -> None:
    """A message we cannot read, as a hasty test double gives it, reaches the application."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        return await receive()

    async def observe(app: App) -> Any:
        async def receive() -> Any:
            return odd

        return await app(http_scope(), receive, Server().send)

    assert await same(app, observe) is odd


async def test_the_return_value_is_passed_on() -> None:
    """Servers ignore it; those who call applications themselves may not."""

    async def app(scope: Any, receive: Any, send: Any) -> str:
        await asyncio.sleep(0)
        return "value"

    async def observe(app: App) -> Any:
        return await app(http_scope(), Server().receive, Server().send)

    assert await same(app, observe) == "value"


async def test_exceptions_arrive_as_they_were_raised() -> None:
    """The same object, with the same cause and context, on the first step and on a later one."""
    for steps in (0, 1):
        cause = KeyError("cause")

        async def app(scope: Any, receive: Any, send: Any, steps: int = steps) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)
            raise LookupError("no") from cause

        async def observe(app: App) -> Any:
            with pytest.raises(LookupError) as caught:
                await app(http_scope(), Server().receive, Server().send)
            error = caught.value
            return str(error), error.__cause__, error.__context__, error.__suppress_context__

        await same(app, observe)


async def test_no_handler_of_ours_shows_in_exc_info() -> None:
    """Code that runs after a caught cancellation sees no exception being handled."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        seen = sys.exc_info()
        try:
            raise LookupError
        except LookupError as error:
            return seen, error.__context__

    async def observe(app: App) -> Any:
        task = asyncio.ensure_future(app(http_scope(), Server().receive, Server().send))
        await asyncio.sleep(0.01)
        task.cancel()
        return await task

    assert await same(app, observe) == ((None, None, None), None)


async def test_cancellation_passes_through_with_its_message() -> None:
    """A cancelled application may clean up, and its canceller learns that it was cancelled."""
    cleaned: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            cleaned.append("yes")

    async def observe(app: App) -> Any:
        task = asyncio.ensure_future(app(http_scope(), Server().receive, Server().send))
        await asyncio.sleep(0.01)
        task.cancel("enough")
        with pytest.raises(asyncio.CancelledError):
            await task
        return task.cancelled(), len(cleaned) > 0

    assert await same(app, observe) == (True, True)


async def test_closing_the_coroutine_closes_the_application() -> None:
    """``close`` reaches the application as GeneratorExit."""
    closed: list[type[BaseException]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await asyncio.sleep(60)
        except BaseException as error:
            closed.append(type(error))
            raise

    async def observe(app: App) -> Any:
        coroutine = app(http_scope(), Server().receive, Server().send)
        coroutine.send(None)
        coroutine.close()
        return closed[-1]

    assert await same(app, observe) is GeneratorExit


async def test_context_variables_are_the_applications() -> None:
    """What the application sets, its caller in the same task sees, and the other way round."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen = variable.get()
        await asyncio.sleep(0)
        variable.set(f"{seen} and back")

    async def observe(app: App) -> str:
        variable.set("there")
        await app(http_scope(), Server().receive, Server().send)
        return variable.get()

    assert await same(app, observe) == "there and back"


async def test_a_mock_of_json_counts_the_applications_calls_only() -> None:
    """A service's test may patch ``json.dumps`` around a request that is the first of its kind."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async def observe(app: App) -> int:
        with mock.patch("json.dumps") as dumps:
            await messages(app)
        return dumps.call_count

    assert await same(app, observe) == 0


@pytest.mark.quiet_faults
async def test_an_agent_that_cannot_start_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Start-up and requests go on, it is logged once, and tried a limited number of times."""
    tries: list[object] = []

    def fail(*arguments: object) -> None:
        tries.append(arguments)
        raise OSError("no /proc here")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await send({"type": "lifespan.startup.complete"})
        else:
            await respond(send)

    async def observe(app: App) -> list[Message]:
        server = Server()
        await app({"type": "lifespan"}, server.receive, server.send)
        for _ in range(2 * Faults.TOLERANCE):
            await app(http_scope(), server.receive, server.send)
        return server.sent

    monkeypatch.setattr("loopscope.asgi.join_agent", fail)
    await same(app, observe)
    assert len(tries) == Faults.TOLERANCE
    assert [record.message for record in caplog.records if "start failed and" in record.message]
    assert len(caplog.records) == 2, "one for the first failure, one for giving up"


@pytest.mark.quiet_faults
async def test_an_agent_that_cannot_stop_cleanly_stops_all_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A part that fails to stop neither fails the service's shutdown nor keeps the others alive."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.complete"})

    def fail(watchdog: Watchdog) -> None:
        stop(watchdog)
        raise OSError("no")

    stop = Watchdog.stop
    monkeypatch.setattr(Watchdog, "stop", fail)
    hooks = list(gc.callbacks)
    await Loopscope(app)({"type": "lifespan"}, Server().receive, Server().send)
    assert current_agent() is None
    assert gc.callbacks == hooks
    assert [each.getMessage().split(" (")[0] for each in caplog.records] == [
        "loopscope: stalls failed and was skipped"
    ]


async def test_a_wrong_variable_fails_no_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once what is wrong; the framework that makes the middleware late notices nothing.

    Had the constructor raised, so would every request, and start-up would have been skipped.
    """
    seen: list[str] = []

    async def homepage(request: Request) -> Response:
        return PlainTextResponse("done")

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        seen.append("started")
        yield

    monkeypatch.setenv("LOOPSCOPE_STALL_THRESHOLD", "fast")
    app = Starlette(routes=[Route("/", homepage)], lifespan=lifespan)
    app.add_middleware(Loopscope)
    server = Server(incoming=[{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    await app({"type": "lifespan", "state": {}}, server.receive, server.send)
    assert seen == ["started"]
    assert (await call(app)).status == 200
    assert current_agent() is None
    (record,) = caplog.records
    assert "LOOPSCOPE_STALL_THRESHOLD is 'fast'" in record.getMessage()


def test_a_wrong_variable_ends_a_start_that_can_still_be_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the service is put together before any event loop runs, whoever starts it finds out."""
    monkeypatch.setenv("LOOPSCOPE_STALL_THRESHOLD", "fast")
    with pytest.raises(SettingsError, match="LOOPSCOPE_STALL_THRESHOLD is 'fast'"):
        Loopscope(Starlette())


def test_a_wrong_keyword_is_an_error() -> None:
    """It is wrong wherever it runs, so whoever wrote it finds out."""
    wrong: Any = {"stall_treshold": 1}
    with pytest.raises(SettingsError, match="did you mean stall_threshold"):
        Loopscope(Starlette(), **wrong)


@pytest.mark.parametrize("kind", ["http", "lifespan"])
def test_a_loop_that_is_not_asyncios_runs_the_application_all_the_same(
    caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    """Servers can run on trio, where nothing is measured, started or wrong: that is said once."""

    async def app(scope: Any, receive: Any, send: Any) -> str:
        return "value"

    wrapped = Loopscope(app)
    for served in (app, wrapped, wrapped):
        coroutine = served(http_scope(type=kind), Server().receive, Server().send)
        with pytest.raises(StopIteration) as done:
            coroutine.send(None)
        assert done.value.value == "value"
    assert current_agent() is None
    (record,) = caplog.records
    assert "only event loops of asyncio and uvloop" in record.getMessage()


async def test_the_task_is_the_callers() -> None:
    """The application runs in the task that called it, under its name."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        await asyncio.sleep(0)
        return asyncio.current_task()

    async def observe(app: App) -> bool:
        return await app(http_scope(), Server().receive, Server().send) is asyncio.current_task()

    assert await same(app, observe) is True


async def test_tasks_are_called_what_they_would_be_called() -> None:
    """As without the agent: by number where nobody gave them a name, however they were made."""
    names: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        async with asyncio.TaskGroup() as group:
            tasks = [
                asyncio.create_task(asyncio.sleep(0)),
                asyncio.create_task(asyncio.sleep(0), context=context),
                loop.create_task(asyncio.sleep(0)),
                asyncio.ensure_future(asyncio.sleep(0)),
                group.create_task(asyncio.sleep(0)),
            ]
            named = asyncio.create_task(asyncio.sleep(0), name="named")
            await asyncio.gather(*tasks, named)
        names.extend(re.sub(r"\d+", "N", task.get_name()) for task in (*tasks, named))
        await PlainTextResponse("done")(scope, receive, send)

    await call(app)
    bare, names[:] = list(names), []
    await call(Loopscope(app))
    assert names == bare
    assert names[-1] == "named"


async def test_back_pressure_holds_the_stream_back() -> None:
    """An application cannot run ahead of a server that takes one chunk at a time."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for number in range(3):
            events.append(f"make {number}")
            await send({"type": "http.response.body", "body": b"x", "more_body": number < 2})

    events: list[str] = []

    async def observe(app: App) -> list[str]:
        events.clear()

        async def slow(message: Message) -> None:
            await asyncio.sleep(0.01)
            events.append(message["type"])

        await app(http_scope(), Server().receive, slow)
        return list(events)

    await same(app, observe)


async def test_a_send_may_be_awaited_later_or_as_a_task() -> None:
    """``send`` gives back what the server's gives back, to be awaited however one likes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(
            send({"type": "http.response.start", "status": 200, "headers": []})
        )
        await asyncio.gather(send({"type": "http.response.body", "body": b"x"}))

    await same(app, messages)


async def test_applications_need_not_be_coroutine_functions() -> None:
    """Anything that returns an awaitable will do."""

    class Awaitable:
        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return "value"

    def app(scope: Any, receive: Any, send: Any) -> Any:
        return Awaitable()

    async def observe(app: App) -> Any:
        return await app(http_scope(), Server().receive, Server().send)

    await same(app, observe)


async def test_websocket_messages_and_closes_are_unchanged() -> None:
    """Accept, messages and close reach the server as they were sent."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept", "subprotocol": "chat"})
        await send({"type": "websocket.send", "bytes": b"\xff"})
        await send({"type": "websocket.close", "code": 4000, "reason": "tired"})

    async def observe(app: App) -> list[Message]:
        server = Server(incoming=[{"type": "websocket.connect"}])
        await app(websocket_scope(), server.receive, server.send)
        return server.sent

    await same(app, observe)


@pytest.mark.parametrize("answer", ["complete", "failed"])
async def test_lifespan_is_unchanged(answer: str) -> None:
    """Start-up that works and start-up that fails look the same to the server."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": f"lifespan.startup.{answer}"})
        if answer == "failed":
            raise RuntimeError("no database")
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    async def observe(app: App) -> Any:
        server = Server(incoming=[{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        try:
            await app({"type": "lifespan", "state": {}}, server.receive, server.send)
        except RuntimeError as error:
            return server.sent, str(error)
        return server.sent

    await same(app, observe)


async def test_an_application_without_lifespan_still_says_so() -> None:
    """Servers find out by the exception; it has to arrive."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "no lifespan here"

    async def observe(app: App) -> str:
        with pytest.raises(AssertionError) as caught:
            await app({"type": "lifespan"}, Server().receive, Server().send)
        return str(caught.value)

    await same(app, observe)


@pytest.mark.parametrize(
    "path",
    ["/at-once", "/waits", "/streams", "/fails", "/task-fails", "/task-of-task-fails",
     "/thread-fails", "/websocket"],
)  # fmt: skip
async def test_a_request_leaves_no_cyclic_garbage(path: str) -> None:
    """What a request made is freed as it ends: the garbage collector has no more to do than before.

    Cycles would double a busy service's full collections, which stop everything for tens of
    milliseconds.
    """

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if path == "/websocket":
            await send({"type": "websocket.accept"})
            return
        if path == "/fails":
            raise_deliberately()
        if path == "/waits":
            await asyncio.sleep(0)
        if path in failing:
            await failing[path]()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if path == "/streams":
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b"})

    async def one(app: Any) -> None:
        scope = websocket_scope(path) if path == "/websocket" else http_scope(path)
        server = Server()
        with contextlib.suppress(LookupError):
            await app(scope, server.receive, server.send)

    async def garbage(app: Any) -> int:
        await one(app)
        gc.collect()
        for _ in range(50):
            await one(app)
        return gc.collect()

    failing = {
        "/task-fails": task_fails,
        "/task-of-task-fails": task_of_task_fails,
        "/thread-fails": thread_fails,
    }
    measured = Loopscope(application)
    gc.disable()
    try:
        assert await garbage(measured) <= await garbage(application)
    finally:
        gc.enable()


async def test_what_was_awaited_first_is_not_kept_for_the_whole_request() -> None:
    """Once the application has let go of it, and the step that it woke is over, it is gone."""

    async def observe(app: App) -> list[bool]:
        await call(app)
        return kept

    async def application(scope: Any, receive: Any, send: Any) -> None:
        kept.clear()
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        reference = weakref.ref(future)
        loop.call_soon(future.set_result, None)
        await future
        del future
        await asyncio.sleep(0)
        kept.append(reference() is not None)
        await respond(send)

    kept: list[bool] = []
    assert await same(application, observe) == [False]


async def task_fails() -> None:
    """What a task raises is caught by whoever waits for it."""

    async def child() -> None:
        await asyncio.sleep(0)
        raise_deliberately()

    with contextlib.suppress(LookupError):
        await asyncio.create_task(child())


async def task_of_task_fails() -> None:
    """The same within a task."""
    await asyncio.create_task(task_fails())


async def thread_fails() -> None:
    """The same with a thread."""
    with contextlib.suppress(LookupError):
        await asyncio.to_thread(raise_deliberately)


def raise_deliberately() -> None:
    raise LookupError("deliberate")
