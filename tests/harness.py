"""Calling an ASGI app in-process, and reading back what the agent published about it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from loopscope.agent import current_agent

Message = MutableMapping[str, Any]


def http_scope(path: str = "/", method: str = "GET", **more: Any) -> Message:
    """A scope as uvicorn makes it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": method,
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000")],
        "state": {},
        **more,
    }


def websocket_scope(path: str = "/") -> Message:
    """A WebSocket scope as uvicorn makes it."""
    scope = dict(http_scope(path, type="websocket", scheme="ws", subprotocols=[]))
    del scope["method"]
    return scope


@dataclass
class Server:
    """A server for one call: hands out ``incoming`` messages, keeps what the app sent."""

    incoming: list[Message] = field(
        default_factory=lambda: [{"type": "http.request", "body": b"", "more_body": False}]
    )
    sent: list[Message] = field(default_factory=list)
    disconnected: bool = False
    on_send: Callable[[Message], Awaitable[None]] | None = None

    async def receive(self) -> Message:
        return self.incoming.pop(0) if self.incoming else {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.on_send is not None:
            await self.on_send(message)
        self.sent.append(message)

    @property
    def status(self) -> int:
        return next(int(m["status"]) for m in self.sent if m["type"] == "http.response.start")

    @property
    def body(self) -> bytes:
        return b"".join(m.get("body", b"") for m in self.sent)


async def call(app: Any, path: str = "/", method: str = "GET", **more: Any) -> Server:
    """One HTTP request through ``app``."""
    server = Server()
    await app(http_scope(path, method, **more), server.receive, server.send)
    return server


def scraped(accept: str = "") -> str:
    """``/metrics`` now; nothing as long as no agent runs."""
    agent = current_agent()
    return "" if agent is None else b"".join(agent.render(accept)[0]).decode()


def published(name: str, **labels: str) -> float:
    """One sample of ``/metrics``, summed over the label sets that agree with ``labels``."""
    return sum(float(sample.value) for sample in samples(scraped(), name, labels))


def label_sets(name: str, **labels: str) -> list[dict[str, str]]:
    """The label sets under which a sample is published, those that agree with ``labels``."""
    return [sample.labels for sample in samples(scraped(), name, labels)]


def samples(text: str, name: str, labels: dict[str, str]) -> Iterable[Any]:
    """The samples of that name in ``text``, those whose label sets agree with ``labels``."""
    # Only the lines it can be in: parsing is most of what looking at a figure takes.
    lines = "\n".join(line for line in text.split("\n") if line.startswith(name))
    for family in text_string_to_metric_families(lines):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                yield sample
