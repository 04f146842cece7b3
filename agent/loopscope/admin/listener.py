"""The admin listener: one thread with a loop of its own, so it answers when the service cannot.

Of several workers one has the port and speaks for all; the others wait in their threads, and when
it is gone the first of them to notice has it.

The socket listens before the thread starts: a port that is taken is known at once and costs the
service nothing but a log line. uvicorn's protocol class is used without uvicorn's ``Server``, whose
signal handlers, log lines and ten ticks a second belong to a program, not to a guest in one.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from itertools import count

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from loopscope.admin.app import AdminApp
from loopscope.agent import Agent

logger = logging.getLogger("loopscope")

_LOOPBACK = ("127.", "localhost", "::1")
_BACKLOG = 64
_RETRY = 0.5
"""Seconds between attempts to take over the port."""
_DOUBTS = 4
"""Attempts after which somebody should have said that they have the port."""
_PATIENCE = 5.0
"""Seconds a stop may wait for the thread to begin, and again for it to end."""


class _QuietProtocol(H11Protocol):
    """HTTP/1.1 without lines in the service's access log."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self.access_log = False
        self.logger = logging.getLogger("loopscope.admin")


class AdminListener:
    """Serves ``AdminApp`` on the ``listen`` setting's address, for one agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._app: AdminApp | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._leaving = threading.Event()

    @property
    def url(self) -> str:
        """Where it listens, or nothing."""
        if self._socket is None:
            return ""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def fileno(self) -> int:
        """The descriptor of its socket; -1 where it does not listen."""
        bound = self._socket
        return -1 if bound is None else bound.fileno()

    def start(self) -> None:
        """Bind and serve. A taken port is logged, with what to do about it, and that is all."""
        address = self._agent.settings.listen_address
        if address is None:
            return
        host, port = address
        token = self._agent.settings.token
        metrics_only = _exposed(host) and not token
        if metrics_only:
            logger.warning(
                "loopscope: %s:%d is not loopback and LOOPSCOPE_TOKEN is not set, so only /metrics "
                "and /healthz are served there",
                host,
                port,
            )
        self._app = AdminApp(lambda: self._agent, token=token, metrics_only=metrics_only)
        error = self._bind(host, port)
        if error is not None and self._agent.group is None:
            _complain(host, port, error)
            return
        self._thread = threading.Thread(
            target=self._run, args=(host, port, error), name="loopscope-admin", daemon=True
        )
        self._thread.start()

    def _bind(self, host: str, port: int) -> OSError | None:
        """Listen; the error if that cannot be."""
        try:
            self._socket = _listening(host, port)
        except OSError as error:
            return error
        logger.info("loopscope: figures at %s/metrics", self.url)
        return None

    def _say_so(self) -> None:
        """Let the other workers know that the port is in good hands."""
        if self._agent.group is not None:
            try:
                self._agent.group.speak()
            except OSError as failure:
                self._agent.faults.report("workers", failure)

    def _wait_for_port(self, host: str, port: int, error: OSError) -> None:
        """Try again until another worker, who speaks for all, has gone; or until we stop."""
        group = self._agent.group
        assert group is not None
        for attempt in count(1):
            if self._leaving.wait(_RETRY) or self._bind(host, port) is None:
                return
            if attempt == _DOUBTS and not group.is_spoken_for():
                _complain(host, port, error)

    def stop(self) -> None:
        """Close the socket and end the thread."""
        thread = self._thread
        self._leaving.set()
        if thread is not None:
            self._ready.wait(_PATIENCE)  # here: whoever starts us is a request that waits
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)
        if self._agent.group is not None:
            self._agent.group.hush()
        self.abandon()

    def abandon(self) -> None:
        """Close what a fork inherited; the thread is the parent's and does not exist here."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._thread = self._loop = self._stop = None

    def _run(self, host: str, port: int, error: OSError | None) -> None:
        try:
            if error is not None:
                self._wait_for_port(host, port, error)
            if self._socket is not None:
                self._say_so()
                asyncio.run(self._serve())
        except Exception as failure:
            self._agent.faults.report("admin", failure)
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        assert self._app is not None and self._socket is not None
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        config = uvicorn.Config(
            self._app.application(),
            log_config=None,  # the service's logging is its own affair
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            date_header=False,
        )
        state = ServerState()
        server = await self._loop.create_server(
            lambda: _QuietProtocol(config, state), sock=self._socket, backlog=_BACKLOG
        )
        self._ready.set()
        await self._stop.wait()
        server.close()
        for connection in list(state.connections):
            connection.shutdown()
        for connection in list(state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)


def _complain(host: str, port: int, error: OSError) -> None:
    logger.warning(
        "loopscope: cannot listen on %s:%d (%s); the service is not affected, but its figures "
        "cannot be read. Set LOOPSCOPE_LISTEN to a free address, or to 'off'.",
        host,
        port,
        error.strerror or error,
    )


def _exposed(host: str) -> bool:
    return not host.startswith(_LOOPBACK)


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        # Two processes that reuse addresses may both bind; only one of them may listen.
        bound.listen(_BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound
