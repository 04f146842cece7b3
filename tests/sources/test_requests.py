"""HTTP requests as the middleware measures them, driven in-process on every kind of loop."""

from __future__ import annotations

import asyncio
import gc
import time
import weakref
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.core.faults import Faults
from tests.harness import Message, Server, call, http_scope, label_sets, published

pytestmark = pytest.mark.anyio

DURATION = "http_server_request_duration_seconds"
OUTCOMES = "loopscope_request_outcomes_total"


def service(endpoint: Any, path: str = "/items/{id}", **settings: Any) -> Loopscope:
    routes = [Route(path, endpoint, methods=["GET", "POST"])]
    return Loopscope(Starlette(routes=routes), **settings)


async def hello(request: Request) -> Response:
    return PlainTextResponse("hello")


async def test_a_request_is_labelled_by_method_route_and_status() -> None:
    """A request is published under its method, route template and status, never its path."""
    app = service(hello)
    await call(app, "/items/1")
    await call(app, "/items/2")
    labels = {"http_request_method": "GET", "http_route": "/items/{id}"}
    assert published(f"{DURATION}_count", http_response_status_code="200", **labels) == 2
    assert published(OUTCOMES, outcome="ok", **labels) == 2


async def test_unmatched_paths_share_one_label() -> None:
    """Paths no route knows are one series, however many there are."""
    app = service(hello)
    for number in range(20):
        await call(app, f"/nowhere/{number}")
    routes = {labels["http_route"] for labels in label_sets(f"{DURATION}_count")}
    assert routes == {"_UNMATCHED"}


async def test_invented_methods_are_other() -> None:
    """A method outside the standard ones is published as _OTHER."""
    app = service(hello)
    await call(app, "/items/1", "BREW")
    assert published(f"{DURATION}_count", http_request_method="_OTHER") == 1


async def test_installed_twice_measures_once() -> None:
    """A second middleware around the same request adds nothing."""
    app = Loopscope(service(hello))
    await call(app, "/items/1")
    assert published(f"{DURATION}_count") == 1


async def test_the_scope_is_left_as_it_was() -> None:
    """What loopscope puts into the scope is gone when the request is over."""
    scope = http_scope("/items/1")
    server = Server()
    await service(hello)(scope, server.receive, server.send)
    assert "loopscope" not in scope


async def test_excluded_paths_are_not_measured() -> None:
    """A path that an exclude pattern finds leaves no trace."""
    app = service(hello, path="/health", exclude=("^/health",))
    await call(app, "/health")
    assert published(f"{DURATION}_count") == 0


async def test_an_exception_is_an_error_with_its_type() -> None:
    """An exception reaches the server unchanged and is a 500 with the exception's name."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("no")

    app = Loopscope(broken)
    with pytest.raises(LookupError):
        await call(app)
    assert published(f"{DURATION}_count", error_type="LookupError") == 1
    assert published(f"{DURATION}_count", http_response_status_code="500") == 1
    assert published(OUTCOMES, outcome="error") == 1


async def test_a_5xx_is_an_error_and_a_4xx_is_not() -> None:
    """Servers err with 5xx; a 404 was answered all right."""

    async def status(request: Request) -> Response:
        return Response(status_code=int(request.path_params["id"]))

    app = service(status)
    await call(app, "/items/503")
    await call(app, "/items/404")
    assert published(OUTCOMES, outcome="error") == 1
    assert published(OUTCOMES, outcome="ok") == 1
    assert published(f"{DURATION}_count", error_type="503") == 1


async def test_a_missing_response_is_an_error() -> None:
    """An app that returns without answering is a 500, as servers make it."""

    async def silent(scope: Any, receive: Any, send: Any) -> None: ...

    await call(Loopscope(silent))
    assert published(f"{DURATION}_count", error_type="incomplete_response") == 1


async def test_a_body_that_was_never_awaited_was_never_sent() -> None:
    """An app that forgets to await its last message has not answered."""

    async def forgetful(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        forgotten = send({"type": "http.response.body", "body": b"hello"})
        scope["state"]["forgotten"] = forgotten

    scope = http_scope()
    server = Server()
    await Loopscope(forgetful)(scope, server.receive, server.send)
    scope["state"]["forgotten"].close()
    assert published(f"{DURATION}_count", error_type="incomplete_response") == 1
    assert published(OUTCOMES, outcome="ok") == 0


async def test_labels_follow_when_the_routes_change() -> None:
    """A template that was remembered is found anew once the tables of routes have changed."""
    inner = Starlette(routes=[Route("/x", hello)])
    outer = Starlette(routes=[Mount("/a", inner)])
    app = Loopscope(outer)
    await call(app, "/a/x")
    await call(app, "/a/x")
    outer.router.routes.extend([Mount("/b", inner), Route("/new", hello)])
    await call(app, "/new")
    await call(app, "/b/x")
    await call(app, "/a/x")
    counts = {r: published(f"{DURATION}_count", http_route=r) for r in ("/a/x", "/b/x", "/new")}
    assert counts == {"/a/x": 3, "/b/x": 1, "/new": 1}


async def test_routes_that_come_and_go_are_not_kept() -> None:
    """Route objects that live for one request are forgotten, and each has its own label."""
    seen: list[weakref.ref[Route]] = []

    async def fresh(scope: Any, receive: Any, send: Any) -> None:
        route = Route(scope["path"], hello)
        seen.append(weakref.ref(route))
        scope.update(route=route, endpoint=hello)
        await PlainTextResponse("hello")(scope, receive, send)

    app = Loopscope(fresh, max_series=200)
    for number in range(1300):
        await call(app, f"/{number}")
    assert published(f"{DURATION}_count", http_route="/7") == 1
    gc.collect()
    assert sum(ref() is not None for ref in seen) <= 1100


async def test_a_client_that_leaves_before_the_response_is_no_500() -> None:
    """A disconnect seen before the response started is its own outcome, with no status."""

    async def waits(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    await call(Loopscope(waits))
    assert published(OUTCOMES, outcome="client_disconnected_before_response") == 1
    assert published(f"{DURATION}_count", http_response_status_code="500") == 0


async def test_what_is_answered_to_a_client_that_has_left_is_no_500() -> None:
    """Frameworks send one where the body cannot be read, as when the client leaves: to nobody."""

    async def reads(request: Request) -> Response:
        return Response(await request.body())

    server = Server([{"type": "http.request", "body": b"half", "more_body": True}])
    app = Loopscope(Starlette(routes=[Route("/", reads, methods=["POST"])]))
    with pytest.raises(ClientDisconnect):
        await app(http_scope(method="POST"), server.receive, server.send)
    assert server.status == 500
    (labels,) = label_sets(f"{DURATION}_count")
    assert labels["http_response_status_code"] == ""
    assert published(OUTCOMES, outcome="client_disconnected_before_response") == 1


async def test_a_truncated_stream_is_no_clean_200() -> None:
    """A client that leaves in the middle of a stream is client_disconnected_mid_stream."""

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass

    await call(Loopscope(streams))
    assert published(OUTCOMES, outcome="client_disconnected_mid_stream") == 1
    assert published(OUTCOMES, outcome="ok") == 0


async def test_the_server_knows_of_clients_the_app_never_asked_about() -> None:
    """A response finished for a client that had left counts as left, where the server says so."""
    server = Server(disconnected=True)
    await service(hello)(http_scope("/items/1"), server.receive, server.send)
    assert published(OUTCOMES, outcome="client_disconnected_mid_stream") == 1


async def test_a_disconnect_nobody_has_taken_yet_is_seen_and_left_where_it_is() -> None:
    """A stream whose server had queued the news of its end (hypercorn) is no clean 200."""
    queue: asyncio.Queue[Message] = asyncio.Queue()
    server = Server()

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        if scope["path"] == "/left":
            queue.put_nowait({"type": "http.disconnect"})
        await send({"type": "http.response.body", "body": b""})
        queue.put_nowait({"type": "http.disconnect"})  # as hypercorn does after every response

    app = Loopscope(streams)
    await app(http_scope("/stayed"), queue.get, server.send)
    assert published(OUTCOMES, outcome="ok") == queue.qsize() == 1
    queue.get_nowait()
    await app(http_scope("/left"), queue.get, server.send)
    assert published(OUTCOMES, outcome="client_disconnected_mid_stream") == 1
    assert queue.qsize() == 2


async def test_cancellation_is_its_own_outcome() -> None:
    """A cancelled request is cancelled, and the cancellation goes on to whoever awaits it."""
    started = asyncio.Event()

    async def slow(request: Request) -> Response:
        started.set()
        await asyncio.sleep(60)
        return PlainTextResponse("late")

    task = asyncio.create_task(call(service(slow), "/items/1"))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert published(OUTCOMES, outcome="cancelled") == 1


async def test_bodies_are_counted_both_ways() -> None:
    """Request bytes are counted as they are read, response bytes as they are sent."""

    async def echo(request: Request) -> Response:
        return Response(await request.body() * 2)

    server = Server(
        incoming=[
            {"type": "http.request", "body": b"x" * 1000, "more_body": True},
            {"type": "http.request", "body": b"x" * 234},
        ]
    )
    await service(echo)(http_scope("/items/1", "POST"), server.receive, server.send)
    assert published("http_server_request_body_size_bytes_sum") == 1234
    assert published("http_server_response_body_size_bytes_sum") == 2468


async def test_background_work_is_not_part_of_the_duration() -> None:
    """A background task prolongs the task's end, not the published duration."""

    async def answer(request: Request) -> Response:
        return PlainTextResponse("done", background=BackgroundTask(asyncio.sleep, 0.2))

    await call(service(answer), "/items/1")
    background = published("loopscope_request_background_seconds_sum")
    assert background >= 0.19
    assert published(f"{DURATION}_sum") < background
    assert published("loopscope_request_phase_seconds_total", phase="background") == background


async def test_a_request_is_in_flight_only_when_it_is_whole() -> None:
    """Another thread never finds a request that does not know yet when it began."""
    app = service(hello)
    await call(app, "/items/1")
    agent = current_agent()
    assert agent is not None
    (recorders,) = agent._recorders
    clock, found = recorders.requests.now, list[object]()

    def looking() -> float:
        found.extend(each.step_started for each in recorders.requests.active)
        return clock()

    recorders.requests.now = looking
    await call(app, "/items/1")
    assert all(isinstance(each, float) for each in found)


@pytest.mark.real_time
async def test_while_a_background_task_runs_the_request_is_in_background() -> None:
    """In flight is split into serving and background."""
    release = asyncio.Event()
    serving: list[float] = []

    async def answer(request: Request) -> Response:
        serving.append(published("http_server_active_requests"))
        return PlainTextResponse("done", background=BackgroundTask(release.wait))

    task = asyncio.create_task(call(service(answer), "/items/1"))
    await asyncio.sleep(0.05)
    assert serving == [1]
    assert published("http_server_active_requests") == 0
    assert published("loopscope_background_requests") == 1
    release.set()
    await task
    assert published("loopscope_background_requests") == 0


@pytest.mark.real_time
async def test_the_first_byte_comes_before_the_last() -> None:
    """A stream's first chunk is its first byte; its last chunk ends its duration."""

    async def chunks(request: Request) -> Response:
        async def body() -> Any:
            yield b"first"
            await asyncio.sleep(0.2)
            yield b"second"

        return StreamingResponse(body(), media_type="text/csv")

    server = Server(incoming=[])
    server.incoming = [{"type": "http.request", "body": b""}]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    await service(chunks)(http_scope("/items/1"), receive, server.send)
    first_byte = published("loopscope_request_time_to_first_byte_seconds_sum")
    assert published(f"{DURATION}_sum") - first_byte >= 0.19
    assert published("loopscope_response_chunks_total") == 2


async def test_event_streams_stay_out_of_http_latency() -> None:
    """A text/event-stream response has a duration of its own kind and no HTTP duration."""

    async def events(request: Request) -> Response:
        async def body() -> Any:
            yield b"data: 1\n\n"

        return StreamingResponse(body(), media_type="text/event-stream")

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    server = Server()
    await service(events)(http_scope("/items/1"), receive, server.send)
    assert published("loopscope_stream_duration_seconds_count") == 1
    assert published(f"{DURATION}_count") == 0
    assert published(OUTCOMES, outcome="ok") == 1


@pytest.mark.real_time
async def test_back_pressure_on_the_last_chunk_counts() -> None:
    """The duration ends when the server has taken the last byte, not when it was offered."""

    async def slow_client(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(0.2)

    server = Server(on_send=slow_client)
    await service(hello)(http_scope("/items/1"), server.receive, server.send)
    first_byte = published("loopscope_request_time_to_first_byte_seconds_sum")
    assert published(f"{DURATION}_sum") - first_byte >= 0.19


@pytest.mark.real_time
async def test_loop_run_is_work_and_not_waiting() -> None:
    """Blocking the loop shows in loop_run and the longest step; awaiting does not."""

    async def works_and_waits(request: Request) -> Response:
        time.sleep(0.1)
        await asyncio.sleep(0.3)
        time.sleep(0.05)
        return PlainTextResponse("done")

    await call(service(works_and_waits), "/items/1")
    run = published("loopscope_request_phase_seconds_total", phase="loop_run")
    longest = published("loopscope_request_longest_step_seconds_sum")
    duration = published(f"{DURATION}_sum")
    assert 0.15 <= run < duration - 0.25
    assert 0.1 <= longest < run


@pytest.mark.real_time
async def test_steps_of_concurrent_requests_are_told_apart() -> None:
    """Ten requests that wait together and hardly work share none of each other's time."""

    async def waits(request: Request) -> Response:
        for _ in range(5):
            await asyncio.sleep(0.02)
        return PlainTextResponse("done")

    app = service(waits)
    await asyncio.gather(*(call(app, f"/items/{n}") for n in range(10)))
    run = published("loopscope_request_phase_seconds_total", phase="loop_run")
    assert run < published(f"{DURATION}_sum") / 5


async def test_beyond_the_budget_requests_are_folded_and_counted() -> None:
    """Label sets beyond max_series share one overflow series; totals stay right."""

    async def odd(scope: Any, receive: Any, send: Any) -> None:
        status = 200 + int(scope["path"][1:])
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    app = Loopscope(odd, max_series=10)
    for number in range(30):
        await call(app, f"/{number}")
    assert published(f"{DURATION}_count") == 30
    assert published(f"{DURATION}_count", http_route="_OVERFLOW") == 20
    assert published("loopscope_agent_series_folded_total") == 20


class BrokenSlots:
    """Slots that cannot be written to."""

    def __init__(self) -> None:
        self.tries = 0

    def __getitem__(self, index: int) -> float:
        self.tries += 1
        raise RuntimeError("on purpose")


@pytest.mark.quiet_faults
async def test_a_fault_of_ours_leaves_the_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """When recording fails, the response is as it would have been and the fault is counted."""
    app = service(hello)
    await call(app, "/items/1")
    recorders = app._recorders
    assert recorders is not None and not Faults.loud

    monkeypatch.setattr(recorders.requests, "slots", BrokenSlots())
    assert (await call(app, "/items/1")).body == b"hello"
    assert published("loopscope_agent_errors_total", part="requests") == 1


@pytest.mark.quiet_faults
async def test_recording_that_keeps_failing_is_switched_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a hundred failures nothing is recorded any more, and requests are served as before."""
    app = service(hello)
    await call(app, "/items/1")
    recorders = app._recorders
    assert recorders is not None
    slots = BrokenSlots()
    monkeypatch.setattr(recorders.requests, "slots", slots)
    for _ in range(Faults.TOLERANCE + 20):
        assert (await call(app, "/items/1")).body == b"hello"
    assert slots.tries == Faults.TOLERANCE
    assert published("loopscope_agent_errors_total", part="requests") == Faults.TOLERANCE


async def test_queue_time_is_off_unless_asked_for() -> None:
    """X-Request-Start is read only where the setting says so."""
    header = [(b"x-request-start", f"t={time.time() - 2:.3f}".encode())]
    await call(service(hello), "/items/1", headers=header)
    assert label_sets("loopscope_request_queue_seconds_count") == []


async def test_queue_time_is_the_time_since_the_proxy_saw_the_request() -> None:
    """With request_start on, the wait before the server called the app is published."""
    header = [(b"x-request-start", f"t={time.time() - 2:.3f}".encode())]
    await call(service(hello, request_start=True), "/items/1", headers=header)
    assert 1.9 <= published("loopscope_request_queue_seconds_sum") <= 3.0
