"""Calls an ASGI application the way uvicorn does, without sockets or parsing in between."""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import dataclass
from itertools import cycle

from starlette.types import ASGIApp, Message, Scope

from _workloads import Workload

_YIELD_EVERY = 20
"""Requests between two turns of the loop, so that timers and other tasks get theirs."""


@dataclass(frozen=True)
class Slice:
    """What one slice of requests took, in nanoseconds per request.

    `typical_ns` is the median request. `mean_ns` is the whole slice by its requests, so it holds
    what comes now and then as well: garbage collection, and other threads of the process that
    want the same CPU. `cpu_ns` is the CPU time of the whole process by the requests.
    """

    typical_ns: float
    mean_ns: float
    cpu_ns: float


class Exchange:
    """One request's `receive` and `send`, in what an application can see of it like uvicorn's.

    That is: a `receive` that waits once the body is read, and the attribute `disconnected`.
    """

    __slots__ = ("_body", "_complete", "_waiter", "disconnected", "status")

    def __init__(self, body: bytes) -> None:
        self.status = 0
        self.disconnected = False
        self._body: bytes | None = body
        self._complete = False
        self._waiter: asyncio.Future[None] | None = None

    async def receive(self) -> Message:
        """The body first; after that, nothing until the response is complete."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if not self._complete:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Note the status and the end of the response, drop the rest."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        elif not message.get("more_body", False):
            self._complete = True
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)


class Driver:
    """Makes the workload's requests to `app`, one after another.

    With `tasks`, each request runs in a task of its own, as under uvicorn; without, it is awaited
    in place, which is quieter. Both ways the bare application is driven alike.
    """

    def __init__(self, app: ASGIApp, workload: Workload, tasks: bool = False) -> None:
        self.made = 0
        self._app = app
        self._body = workload.body
        self._tasks = tasks
        self._scopes = cycle([_scope(workload, path) for path in workload.paths])

    async def run(self, requests: int) -> Slice:
        """Make `requests` requests; raises `RuntimeError` when one is not answered with 200."""
        took = []
        cpu = time.process_time_ns()
        started = last = time.perf_counter_ns()
        for number in range(requests):
            await self._request()
            now = time.perf_counter_ns()
            took.append(now - last)
            last = now
            if number % _YIELD_EVERY == 0:
                await asyncio.sleep(0)
        mean = (last - started) / requests
        cpu = time.process_time_ns() - cpu
        self.made += requests
        return Slice(statistics.median(took), mean, cpu / requests)

    async def _request(self) -> None:
        template = next(self._scopes)
        scope = {**template, "headers": list(template["headers"]), "state": {}}
        exchange = Exchange(self._body)
        call = self._app(scope, exchange.receive, exchange.send)
        if self._tasks:
            await asyncio.ensure_future(call)
        else:
            await call
        if exchange.status != 200:
            raise RuntimeError(f"{scope['method']} {scope['path']} answered {exchange.status}")


def _scope(workload: Workload, path: str) -> Scope:
    """What uvicorn builds for a request that came over HTTP/1.1 through a proxy."""
    headers = [
        (b"host", b"shop.example"),
        (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) bench/1"),
        (b"accept", b"application/json"),
        (b"accept-encoding", b"gzip, deflate"),
        (b"connection", b"keep-alive"),
        (b"x-request-id", b"7f3c2a9e4b1d4c6f"),
    ]
    if workload.body:
        length = str(len(workload.body)).encode()
        headers += [(b"content-type", b"application/json"), (b"content-length", length)]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 51234),
        "scheme": "http",
        "method": workload.method,
        "root_path": "",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
    }
