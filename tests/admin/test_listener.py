"""The admin listener over real sockets."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import socket
import threading
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from loopscope import Loopscope, metrics_app
from loopscope.admin.listener import AdminListener
from loopscope.agent import current_agent, stop_agent
from tests.harness import call


async def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


def running(**settings: Any) -> str:
    """Start an agent by one request; the URL it listens on."""
    settings.setdefault("listen", "127.0.0.1:0")
    asyncio.run(call(Loopscope(Starlette(routes=[Route("/", hello)]), **settings)))
    agent = current_agent()
    assert agent is not None
    assert isinstance(agent._front, AdminListener)
    return agent._front.url


def get(url: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(url, headers=named), timeout=10) as response:
            return response.status, dict(response.headers), response.read()
    except HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_metrics_are_served_beside_the_service() -> None:
    """A scrape of the listener finds the request that started it."""
    status, headers, body = get(running() + "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b'http_server_request_duration_seconds_count{http_request_method="GET"' in body


def test_openmetrics_and_gzip_are_negotiated() -> None:
    """The Accept headers decide on format and compression."""
    accept = "application/openmetrics-text; version=1.0.0"
    _, headers, body = get(running() + "/metrics", accept=accept, accept_encoding="gzip")
    assert headers["content-type"].startswith("application/openmetrics-text")
    assert gzip.decompress(body).endswith(b"# EOF\n")


def test_the_snapshot_is_json() -> None:
    """``/api/snapshot`` has every family with its series, versioned."""
    document = json.loads(get(running() + "/api/snapshot")[2])
    assert document["version"] == 1
    by_name = {metric["name"]: metric for metric in document["metrics"]}
    (series,) = by_name["http_server_request_duration_seconds"]["series"]
    assert series["count"] == sum(series["buckets"]) == 1


@pytest.mark.parametrize(
    ("path", "method", "status"), [("/nothing", "GET", 404), ("/metrics", "POST", 405)]
)
def test_bad_input_gets_a_sentence(path: str, method: str, status: int) -> None:
    """Unknown paths and methods are answered with a 4xx that says what to do."""
    request = Request(running() + path, method=method)
    with pytest.raises(HTTPError) as caught:
        urlopen(request, timeout=10)
    with caught.value as error:
        assert error.code == status
        assert error.read().endswith(b".\n")


def test_a_token_guards_everything_but_metrics() -> None:
    """With a token set, the API wants it and the scrape does not."""
    url = running(token="secret")
    assert get(url + "/metrics")[0] == 200
    assert get(url + "/api/snapshot")[0] == 401
    assert get(url + "/api/snapshot", authorization="Bearer wrong")[0] == 401
    assert get(url + "/api/snapshot", authorization="Bearer secret")[0] == 200


def test_off_loopback_without_a_token_only_metrics_are_served() -> None:
    """Listening on all addresses without a token does not open the API."""
    port = running(listen="0.0.0.0:0").rpartition(":")[2]
    assert get(f"http://127.0.0.1:{port}/metrics")[0] == 200
    assert get(f"http://127.0.0.1:{port}/api/snapshot")[0] == 404


def test_only_who_serves_off_loopback_says_what_is_missing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of several workers one has the port: the others have nothing to warn of."""
    with socket.create_server(("0.0.0.0", 0)) as taken, caplog.at_level(logging.WARNING):
        running(listen=f"0.0.0.0:{taken.getsockname()[1]}")
    assert "is not loopback" not in caplog.text
    stop_agent()
    running(listen="0.0.0.0:0")
    assert caplog.text.count("is not loopback") == 1


def test_a_taken_port_leaves_the_service_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Where the port is taken the log says what to set, and requests are measured all the same."""
    with socket.create_server(("127.0.0.1", 0)) as taken, caplog.at_level(logging.WARNING):
        assert running(listen=f"127.0.0.1:{taken.getsockname()[1]}") == ""
    assert "Set LOOPSCOPE_LISTEN" in caplog.text


def test_a_port_that_another_worker_takes_in_between_is_taken(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers that start at once may both bind a port; one listens, the other says so."""

    class Overtaken(socket.socket):
        def listen(self, backlog: int = 0, /) -> None:
            other.listen()
            super().listen(backlog)

    with socket.socket() as other, caplog.at_level(logging.WARNING):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", 0))
        monkeypatch.setattr(socket, "socket", Overtaken)
        assert running(listen=f"127.0.0.1:{other.getsockname()[1]}") == ""
    assert caplog.text.count("cannot listen on") == 1


def test_stopping_closes_the_port_and_ends_the_thread() -> None:
    """After stop nothing listens and no thread of ours is left."""
    url = running()
    get(url + "/metrics")
    stop_agent()
    port = int(url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert not [t for t in threading.enumerate() if t.name == "loopscope-admin"]


def test_the_services_access_log_is_left_alone() -> None:
    """Starting the listener changes neither handlers nor levels of uvicorn's loggers."""
    loggers = [logging.getLogger(f"uvicorn{name}") for name in ("", ".error", ".access")]
    before = [(list(log.handlers), log.level, log.propagate) for log in loggers]
    running()
    assert [(list(log.handlers), log.level, log.propagate) for log in loggers] == before


def test_metrics_can_be_mounted_into_the_service() -> None:
    """``metrics_app`` serves the same figures from inside the application."""
    routes = [Route("/", hello), Mount("/ops", metrics_app())]
    app = Loopscope(Starlette(routes=routes))

    async def both() -> bytes:
        await call(app)
        return (await call(app, "/ops/metrics")).body

    assert b'http_route="/"' in asyncio.run(both())


def test_mounted_without_a_token_only_metrics_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """A service is there for others, and so would stacks be; with a token, who has it sees them."""

    def status(**headers: str) -> int:
        app = Loopscope(Starlette(routes=[Mount("/ops", metrics_app())]))
        named = [(name.encode(), text.encode()) for name, text in headers.items()]
        return asyncio.run(call(app, "/ops/api/requests", headers=named)).status

    assert status() == 404
    monkeypatch.setenv("LOOPSCOPE_TOKEN", "secret")
    assert status() == 401
    assert status(authorization="Bearer secret") == 200


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/api/snapshot", "/api/stalls"])
def test_before_the_first_request_there_is_nothing_to_serve(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """Mounted into a service that nobody has called yet, every figure is a 503 that says why."""
    monkeypatch.setenv("LOOPSCOPE_TOKEN", "secret")
    server = asyncio.run(call(metrics_app(), path, headers=[(b"authorization", b"Bearer secret")]))
    assert server.status == 503
    assert server.body.endswith(b"it starts with the first request.\n")


def test_the_front_page_lists_what_there_is_and_health_says_only_that() -> None:
    """``/`` names every address; ``/healthz`` is two letters."""
    url = running()
    assert b"/api/stalls" in get(url + "/")[2]
    assert get(url + "/healthz")[2] == b"ok\n"


@pytest.mark.parametrize("query", ["?sort=worst", "?limit=many", "?group=route"])
def test_a_parameter_that_makes_no_sense_is_a_400(query: str) -> None:
    """The answer says what would."""
    status, _, body = get(running() + "/api/stalls" + query)
    assert status == 400
    assert body.strip()
