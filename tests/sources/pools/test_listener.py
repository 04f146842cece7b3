"""Accept queues of real sockets: counted to the connection, and never touched."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopscope.agent import current_agent
from loopscope.sources.pools import accept_queue, listener
from loopscope.sources.pools.listener import Listeners
from tests.e2e.running import eventually
from tests.sources.pools.book import Published

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells on Linux only"),
    pytest.mark.real_time,
]

ANY = ("127.0.0.1", 0)
BACKLOG = 50


@pytest.fixture
def published() -> Published:
    found = Published()
    found.lookouts.append(Listeners(found.book, tuple))
    return found


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(ANY, backlog=BACKLOG) as bound:
        yield bound


def address(bound: socket.socket) -> str:
    return accept_queue.written(bound.getsockname())


@contextlib.contextmanager
def clients(bound: socket.socket, count: int) -> Iterator[None]:
    """So many who are connected, whether anybody accepts them or not."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            client = stack.enter_context(socket.socket(bound.family))
            client.settimeout(10)
            client.connect(bound.getsockname())
        yield


def queued(count: float, backlog: int = BACKLOG) -> dict[str, float]:
    return {"capacity": backlog, "in_use": count, "pending": count}


def test_every_connection_that_nobody_accepts_is_counted(
    published: Published, server: socket.socket
) -> None:
    """Seven clients, seven in the queue of fifty; once they are accepted there is nobody."""
    with clients(server, 7):
        published.refresh()
        assert published.pool(address(server)) == queued(7)
        for _ in range(7):
            server.accept()[0].close()
        published.refresh()
        assert published.pool(address(server)) == queued(0)


@pytest.mark.anyio
async def test_a_blocked_loop_is_seen_from_a_side_thread(published: Published) -> None:
    """Whatever connects while the loop is held waits in the queue, and leaves it afterwards."""
    service = await asyncio.start_server(lambda _, writer: writer.close(), *ANY, backlog=BACKLOG)
    (bound,) = service.sockets
    name = accept_queue.written(bound.getsockname())
    with contextlib.ExitStack() as stack:
        for _ in range(20):  # nothing is awaited: the loop is held
            stack.enter_context(socket.create_connection(bound.getsockname()))
        asyncio.get_running_loop().run_in_executor(None, published.refresh)
        assert eventually(lambda: published.pool(name) == queued(20))
        await asyncio.sleep(0.1)
        await asyncio.to_thread(published.refresh)
        assert published.pool(name) == queued(0)
    service.close()
    await service.wait_closed()


def test_a_closed_socket_is_gone_and_its_port_is_free(
    published: Published, server: socket.socket
) -> None:
    """Watching keeps nothing open: the service may listen there again, at once."""
    published.refresh()
    where = server.getsockname()
    with clients(server, 3):
        published.refresh()
        server.close()
        published.refresh()
    assert set(published.pool(accept_queue.written(where)).values()) == {0}
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(where)
        again.listen(9)
        published.refresh()
        assert published.pool(address(again)) == queued(0, backlog=9)


def test_a_number_that_means_something_else_now_is_not_read(
    published: Published, server: socket.socket
) -> None:
    """Another listening socket under the number of one that was closed is itself, not that one."""
    published.refresh()
    before = server.fileno()
    first = address(server)
    with socket.create_server(ANY, backlog=3) as other, clients(other, 2):
        server.close()
        os.dup2(other.fileno(), before)
        try:
            published.refresh()
            assert set(published.pool(first).values()) == {0}
            published.refresh()
            assert published.pool(address(other)) == queued(2, backlog=3)
        finally:
            os.close(before)


def test_one_that_is_shut_down_is_gone(published: Published, server: socket.socket) -> None:
    """A socket may be open and listen no more."""
    with clients(server, 3):
        published.refresh()
        name = address(server)
        server.shutdown(socket.SHUT_RDWR)
        published.refresh()
    assert set(published.pool(name).values()) == {0}


def test_a_socket_with_two_numbers_is_one(published: Published, server: socket.socket) -> None:
    """A duplicate adds nothing, and when one of the two is closed it goes on."""
    name = address(server)
    with server.dup(), clients(server, 2):
        published.refresh()
        assert not [pool for pool in published.pools() if pool != name and pool.startswith(name)]
        server.close()
        published.refresh()
        published.refresh()
        assert published.pool(name) == queued(2)


def test_the_service_s_sockets_stay_as_they_are(published: Published) -> None:
    """Blocking ones stay so, even where the service has set a timeout for all of its sockets."""
    with socket.create_server(ANY) as bound:
        socket.setdefaulttimeout(5)
        try:
            published.refresh()
        finally:
            socket.setdefaulttimeout(None)
        assert published.pool(address(bound))
        assert os.get_blocking(bound.fileno())


def test_a_server_that_comes_later_is_found(published: Published) -> None:
    """The agent is often there first; looking again costs little as long as there is none."""
    published.refresh()
    with socket.create_server(ANY) as bound:
        published.refresh(later=listener._LATER)
        assert published.pool(address(bound))


def test_our_own_socket_is_no_pool(server: socket.socket) -> None:
    """What the agent listens on is none of the service's."""
    published = Published()
    published.lookouts.append(Listeners(published.book, lambda: [server.fileno()]))
    published.refresh()
    assert address(server) not in published.pools()


def test_ipv6_addresses_are_in_brackets(published: Published) -> None:
    """As everywhere else."""
    try:
        bound = socket.create_server(("::1", 0), family=socket.AF_INET6, backlog=BACKLOG)
    except OSError:
        pytest.skip("no IPv6 here")
    with bound, clients(bound, 1):
        published.refresh()
        assert address(bound).startswith("[::1]:")
        assert published.pool(address(bound)) == queued(1)


@pytest.mark.parametrize("abstract", [False, True])
def test_unix_sockets_have_queues_as_well(
    abstract: bool, published: Published, tmp_path: Path
) -> None:
    """Under their path; abstract ones begin with @, as usual."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"\0{path}" if abstract else path)
        bound.listen(BACKLOG)
        with clients(bound, 4):
            published.refresh()
            assert published.pool(f"@{path}" if abstract else path) == queued(4)
            bound.accept()[0].close()
            published.refresh()
            assert published.pool(f"@{path}" if abstract else path) == queued(3)


def test_other_sockets_are_left_alone(published: Published) -> None:
    """Neither those that are connected, nor those that are bound and do not listen."""
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket() as bound, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        bound.bind(ANY)
        datagrams.bind(ANY)
        published.refresh()
        assert not published.pools() & {address(bound), address(datagrams)}


def test_addresses_are_bounded(published: Published) -> None:
    """A service that listens at ever new ports does not use up the room for pools."""
    with contextlib.ExitStack() as stack:
        for _ in range(listener.MOST + 5):
            stack.enter_context(socket.create_server(ANY))
        published.refresh()
        published.refresh(later=listener._LATER)
        assert len(published.pools()) == listener.MOST


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_no_privilege_is_needed(
    published: Published, server: socket.socket, tmp_path: Path
) -> None:
    """Nobody in particular may ask about their own sockets, TCP and Unix."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(path)
        unix.listen(BACKLOG)
        with clients(server, 3), clients(unix, 2):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    if os.getuid() == 0:
                        os.setgid(65534)
                        os.setuid(65534)
                    published.refresh()
                    seen = published.pool(address(server)), published.pool(path)
                    code = 0 if seen == (queued(3), queued(2)) else 2
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_answer_without_a_queue_is_none() -> None:
    """Whatever else a kernel says, or how short it is: there is just no figure."""
    for length in range(64):
        assert accept_queue._answered(bytes(length)) is None


def test_without_an_agent_nothing_looks() -> None:
    """These tests have no agent that could have looked in their stead."""
    assert current_agent() is None
