"""The admin listener: one thread with a loop of its own, so it answers when the service cannot.

Of several workers one has the port and speaks for all; the others wait in their loops, and when it
is gone the first of them to notice has it.

The socket listens before the thread starts: a port that is taken is known at once and costs the
service nothing but a log line.

Whether it has the port or not, and whether there is to be one or not, each of several workers tells
the others what only it knows, by a socket beside its page.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Iterable
from contextlib import AsyncExitStack, suppress
from itertools import count

from loopscope.admin.answers import answers
from loopscope.admin.app import AdminApp
from loopscope.admin.figures import Figures, of_worker
from loopscope.admin.hatch import Hatch
from loopscope.admin.own import Own
from loopscope.admin.server import BACKLOG, served
from loopscope.agent import Agent
from loopscope.core.faults import Faults
from loopscope.core.group import SOCKET, Group
from loopscope.sentinel.keeper import Keeper
from loopscope.settings import Settings

logger = logging.getLogger("loopscope")

_LOOPBACK = ("127.", "localhost", "::1")
_RETRY = 0.5
"""Seconds between attempts to take over the port."""
_DOUBTS = 4
"""Attempts after which somebody should have said that they have the port."""
_PATIENCE = 5.0
"""Seconds a stop may wait for the thread to begin, and again for it to end."""


class AdminListener:
    """Serves ``figures`` on the ``listen`` setting's address, and a worker's own to its siblings.

    ``group`` are those it may share the address with: then a port that is taken is waited for.
    ``own`` is what is told through the ``hatch``, which is open as long as we serve. As long as
    the ``keeper`` has hope, the address is left to the process that it keeps.
    """

    def __init__(
        self,
        settings: Settings,
        faults: Faults,
        figures: Figures,
        *,
        group: Group | None = None,
        own: Own | None = None,
        hatch: Hatch | None = None,
        keeper: Keeper | None = None,
    ) -> None:
        self._settings = settings
        self._faults = faults
        self._figures = figures
        self._group = group
        self._own = own
        self._hatch = hatch
        self._keeper = keeper
        self._app: AdminApp | None = None
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._ready = threading.Event()
        self._leaving = threading.Event()

    @classmethod
    def of_worker(cls, agent: Agent, keeper: Keeper | None = None) -> AdminListener:
        """The listener of ``agent``, to be its front."""
        path = agent.page.path
        return cls(
            agent.settings,
            agent.faults,
            of_worker(agent),
            group=agent.group,
            own=Own(agent),
            hatch=None if path is None else Hatch(path.with_suffix(SOCKET)),
            keeper=keeper,
        )

    @property
    def url(self) -> str:
        """Where it listens, or nothing."""
        if self._socket is None:
            return ""
        host, port = self._socket.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def filenos(self) -> Iterable[int]:
        """The descriptors of its sockets; -1 for what does not listen."""
        bound, hatch = self._socket, self._hatch
        yield -1 if bound is None else bound.fileno()
        yield -1 if hatch is None else hatch.fileno()

    def start(self) -> None:
        """Bind and serve. A taken port is logged, with what to do about it, and that is all."""
        address = self._settings.listen_address
        error: OSError | None = None
        if address is not None:
            self._app = self._application(address[0])
            error = self._bind(*address) if self._keeper is None else None
        if error is not None and self._group is None:
            assert address is not None
            _complain(*address, error)
        if self._hatch is not None or (address is not None and (error is None or self._group)):
            self._thread = threading.Thread(
                target=self._run, args=(address, error), name="loopscope-admin", daemon=True
            )
            self._thread.start()

    def _application(self, host: str) -> AdminApp:
        token = self._settings.token
        metrics_only = self._is_unguarded(host)
        return AdminApp(lambda: self._figures, token=token, metrics_only=metrics_only)

    def _is_unguarded(self, host: str) -> bool:
        """Whether others can get here, and nothing says who may."""
        return _exposed(host) and not self._settings.token

    def _bind(self, host: str, port: int) -> OSError | None:
        """Listen; the error if that cannot be."""
        try:
            self._socket = _listening(host, port)
        except OSError as error:
            return error
        logger.info("loopscope: figures at %s/metrics", self.url)
        if self._is_unguarded(host):
            logger.warning(
                "loopscope: %s:%d is not loopback and LOOPSCOPE_TOKEN is not set, so only /metrics "
                "and /healthz are served there",
                host,
                port,
            )
        return None

    def stop(self) -> None:
        """Close the sockets and end the thread."""
        thread = self._thread
        self._leaving.set()
        if thread is not None:
            self._ready.wait(_PATIENCE)  # here: whoever starts us is a request that waits
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        if thread is not None and thread is not threading.current_thread():
            thread.join(_PATIENCE)

    def abandon(self) -> None:
        """Close what a fork inherited; the thread is the parent's and does not exist here."""
        if self._socket is not None:
            self._socket.close()
        if self._hatch is not None:
            self._hatch.abandon()
        self._socket = self._thread = self._loop = self._stop = None

    def _run(self, address: tuple[str, int] | None, error: OSError | None) -> None:
        try:
            asyncio.run(self._live(address, error))
        except Exception as failure:
            self._faults.report("admin", failure)
        finally:
            self._ready.set()

    async def _live(self, address: tuple[str, int] | None, error: OSError | None) -> None:
        """Serve whatever there is to serve, until it is time to leave."""
        self._loop = asyncio.get_running_loop()
        self._stop = stop = asyncio.Event()
        if self._leaving.is_set():
            return  # before there was anything to tell us by
        async with AsyncExitStack() as doors:
            await self._answer_siblings(doors)
            if self._keeper is not None:
                self._ready.set()
                await self._keep(self._keeper, stop)
                if address is not None and not stop.is_set():
                    error = self._bind(*address)
            if address is not None and error is not None:
                self._ready.set()
                await self._wait_for_port(*address, error)
            if self._socket is not None:
                assert self._app is not None
                self._say_so()
                await doors.enter_async_context(served(self._app.application(), self._socket))
            self._ready.set()
            await stop.wait()

    async def _keep(self, keeper: Keeper, stop: asyncio.Event) -> None:
        """See that there is a sentinel, until it is time to leave or there will be none."""
        try:
            while not stop.is_set() and not keeper.is_hopeless:
                keeper.look()
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _RETRY)
        finally:
            keeper.close()

    async def _answer_siblings(self, doors: AsyncExitStack) -> None:
        """Let the other workers ask for what only this one knows, until ``doors`` close."""
        if self._own is None or self._hatch is None:
            return
        try:
            doors.callback(self._hatch.close)
            app = answers(self._own, self._faults)
            await doors.enter_async_context(served(app, self._hatch.open(BACKLOG)))
        except OSError as failure:
            self._faults.report("workers", failure)

    def _say_so(self) -> None:
        """Let the other workers know that the port is in good hands."""
        if self._group is not None:
            try:
                self._group.speak()
            except OSError as failure:
                self._faults.report("workers", failure)

    async def _wait_for_port(self, host: str, port: int, error: OSError) -> None:
        """Try again until another worker, who speaks for all, has gone; or until we stop."""
        assert self._stop is not None and self._group is not None
        for attempt in count(1):
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _RETRY)
            if self._stop.is_set() or self._bind(host, port) is None:
                return
            if attempt == _DOUBTS and not self._group.is_spoken_for():
                _complain(host, port, error)


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
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound
