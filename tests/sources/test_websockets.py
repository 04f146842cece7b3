"""WebSockets as the middleware measures them."""

from __future__ import annotations

from typing import Any

import pytest

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.sources.websockets import WebSocketRecorder
from tests.harness import Message, Server, label_sets, published, websocket_scope

pytestmark = pytest.mark.anyio

CLOSES = "loopscope_websocket_closes_total"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Accepts, echoes text until the client leaves."""
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"] * 2})


async def session(app: Any, *incoming: Message) -> Server:
    server = Server(incoming=[{"type": "websocket.connect"}, *incoming])
    await Loopscope(app)(websocket_scope("/ws"), server.receive, server.send)
    return server


def text(value: str) -> Message:
    return {"type": "websocket.receive", "text": value}


def leaves(code: int) -> Message:
    return {"type": "websocket.disconnect", "code": code}


async def test_messages_and_bytes_are_counted_each_way() -> None:
    """Messages and payload bytes are counted by direction, text as UTF-8."""
    await session(echo, text("ab"), text("é"), leaves(1000))
    assert published("loopscope_websocket_messages_total", direction="in") == 2
    assert published("loopscope_websocket_bytes_total", direction="in") == 4
    assert published("loopscope_websocket_bytes_total", direction="out") == 8


async def test_sessions_stay_out_of_http_latency() -> None:
    """A session has a duration of its own kind and no HTTP request."""
    await session(echo, leaves(1000))
    assert published("loopscope_websocket_duration_seconds_count") == 1
    assert published("http_server_request_duration_seconds_count") == 0


async def test_the_first_to_close_is_the_one_who_closed() -> None:
    """The close code and its initiator are those of whoever closed first."""
    await session(echo, leaves(1001))
    assert published(CLOSES, code="1001", initiator="client") == 1


@pytest.mark.parametrize(("sent", "label"), [(4711, "4xxx"), (3999, "3xxx"), (77, "other")])
async def test_codes_a_client_made_up_make_no_series(sent: int, label: str) -> None:
    """Private codes from outside are folded by their thousand."""
    await session(echo, leaves(sent))
    assert published(CLOSES, code=label, initiator="client") == 1


async def test_a_server_close_keeps_its_code() -> None:
    """Codes the application chose are published as they are."""

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close", "code": 4401})

    await session(refuses)
    assert published(CLOSES, code="4401", initiator="server") == 1


async def test_an_exception_closes_by_error() -> None:
    """An application that raises ends its session as error, and the exception goes on."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        await session(broken)
    assert published(CLOSES, initiator="error") == 1


async def test_open_sessions_are_counted_while_they_last() -> None:
    """The gauge shows a session between accept and end."""
    seen: list[float] = []

    async def looks(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        seen.append(published("loopscope_websocket_active"))

    await session(looks)
    assert seen == [1]
    assert published("loopscope_websocket_active") == 0
    assert label_sets("loopscope_websocket_active") == [{"http_route": "_UNKNOWN"}]


@pytest.mark.parametrize("odd", [None, 7, [], {"type": "websocket.receive", "text": 7}])
async def test_what_cannot_be_read_is_passed_on_and_counted(odd: Any) -> None:
    """Both ways: what is wrong with a message is for the server or the application to say."""
    received: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        await send(odd)

    server = Server(incoming=[odd])
    recorders: list[WebSocketRecorder] = []

    async def noting(message: Any) -> None:
        agent = current_agent()
        assert agent is not None
        recorders.extend({session.recorder for session in agent.live_sessions()})
        await server.send(message)

    await Loopscope(app)(websocket_scope("/ws"), server.receive, noting)
    assert [received, server.sent] == [[odd], [odd]]
    expected = 1 if isinstance(odd, dict) else 2
    assert [recorder.malformed for recorder in recorders] == [expected]
