"""Serving an application over HTTP on a socket that listens, inside of somebody else's program.

uvicorn's protocol class is used without uvicorn's ``Server``, whose signal handlers, log lines and
ten ticks a second belong to a program, not to a guest in one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from loopscope.admin.app import Console

BACKLOG: Final = 64
"""Connections that may wait to be accepted."""


class _QuietProtocol(H11Protocol):
    """HTTP/1.1 without lines in the service's access log."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self.access_log = False
        self.logger = logging.getLogger("loopscope.admin")


@asynccontextmanager
async def served(app: Console, bound: socket.socket) -> AsyncGenerator[None]:
    """Serve ``app`` to whoever connects to ``bound``; in the end, cut off who still is there."""
    config = uvicorn.Config(
        app,
        log_config=None,  # the service's logging is its own affair
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        date_header=False,
    )
    state = ServerState()
    loop = asyncio.get_running_loop()
    is_unix = bound.family == socket.AF_UNIX
    serve = loop.create_unix_server if is_unix else loop.create_server
    server = await serve(lambda: _QuietProtocol(config, state), sock=bound, backlog=BACKLOG)
    try:
        yield
    finally:
        server.close()
        await _turns()  # until who was just accepted is a connection
        for connection in list(state.connections):
            connection.shutdown()
        for connection in list(state.connections):
            connection.transport.abort()
        await _turns()


async def _turns() -> None:
    """Let the loop come round a few times: asyncio accepts, and closes, in several steps."""
    for _ in range(5):
        await asyncio.sleep(0)
