"""Workers of one application know each other by the socket their parent has handed to them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from loopscope.sources.workers import home_of_group, home_of_one, is_left_for_good, left_behind
from tests.test_fork import in_child

pytestmark = [
    pytest.mark.skipif(not Path("/proc").exists(), reason="workers are found by /proc"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("LISTEN_PID", raising=False)
    return tmp_path


@contextmanager
def serving() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_children_with_their_parents_socket_are_one_group(temporary: Path) -> None:
    """They find the same directory, below one of this user's own, named after the parent."""
    with serving():
        first, second = in_child(home_of_group), in_child(home_of_group)
    assert first == second
    home = Path(first)
    assert home.parent == temporary / f"loopscope-{os.geteuid()}"
    assert home.name.startswith(f"{os.getpid()}-")
    assert not home.exists()


def test_children_without_a_socket_are_none() -> None:
    """Services that were started from one shell, say."""
    assert in_child(home_of_group) == "None"


def test_a_socket_of_ones_own_makes_no_group() -> None:
    """The parent has to have it as well."""

    def serve() -> Path | None:
        with serving():
            return home_of_group()

    assert in_child(serve) == "None"


def test_groups_with_other_sockets_are_others() -> None:
    """One parent may start two applications."""
    homes: set[str] = set()
    for _ in range(2):
        with serving():
            homes.add(in_child(home_of_group))
    assert len(homes) == 2 and "None" not in homes


def bound(family: int, kind: int, name: object) -> socket.socket:
    made = socket.socket(family, kind)
    made.bind(name)  # type: ignore[arg-type]
    return made


@pytest.mark.parametrize(
    ("family", "name"),
    [
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_UNIX, "path"),
        (socket.AF_UNIX, b"\0loopscope-test"),
    ],
    ids=["inet", "unix", "abstract"],
)
def test_a_socket_that_does_not_listen_yet_will(family: int, name: object, temporary: Path) -> None:
    """Some servers bind in the parent and listen in the workers."""
    place = str(temporary / "socket") if name == "path" else name
    with bound(family, socket.SOCK_STREAM, place):
        assert in_child(home_of_group) != "None"


def test_sockets_that_are_not_there_to_be_connected_to_make_no_group() -> None:
    """Pairs, connections, datagrams, and sockets without an address."""
    with ExitStack() as stack:
        for pair in socket.socketpair():
            stack.enter_context(pair)
        stack.enter_context(bound(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)))
        stack.enter_context(socket.socket())
        stack.enter_context(socket.socket(socket.AF_UNIX))
        netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        stack.enter_context(netlink)
        server = socket.create_server(("127.0.0.1", 0))
        stack.enter_context(socket.create_connection(server.getsockname()))
        stack.enter_context(server.accept()[0])
        server.close()
        assert in_child(home_of_group) == "None"


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


@pytest.mark.parametrize("timeout", [None, 0.0, 5.0])
def test_looking_at_a_socket_changes_nothing(timeout: float | None) -> None:
    """It blocks if it did before, for all who have it, whatever the default timeout; none is left.

    Servers whose workers wait in ``accept`` would spin otherwise.
    """

    def look() -> str:
        before = open_files()
        socket.setdefaulttimeout(timeout)
        home_of_group()
        return f"{os.get_blocking(server.fileno())} {before == open_files()}"

    with serving() as server:
        assert os.get_blocking(server.fileno())
        assert in_child(look) == "True True"
        assert os.get_blocking(server.fileno())
        server.setblocking(False)
        assert in_child(look) == "False True"


def test_process_1_may_be_the_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is that in its container; what counts is the socket."""
    descriptors = "loopscope.sources.workers._descriptors"
    with serving() as server:
        ours = [(server.fileno(), f"socket:[{os.fstat(server.fileno()).st_ino}]")]
        monkeypatch.setattr(descriptors, lambda pid: iter(ours))
        monkeypatch.setattr(os, "getppid", lambda: 1)
        home = in_child(home_of_group)
    assert Path(home).name.startswith("1-")


def test_a_socket_handed_down_by_systemd_makes_no_group() -> None:
    """It is meant for the process named with it, whose workers are a group of their own."""

    def told() -> str:
        os.environ["LISTEN_PID"] = str(os.getpid())
        return f"{home_of_group()} {in_child(home_of_group) != 'None'}"

    with serving():
        assert in_child(told) == "None True"


def test_a_worker_whose_parent_has_died_starts_afresh_alone() -> None:
    """Whoever adopted it has no socket in common with it."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                pass
            os.write(theirs, str(home_of_group()).encode())
        os._exit(0)
    os.close(theirs)
    os.waitpid(pid, 0)
    with os.fdopen(ours) as said:
        assert said.read() == "None"


def test_only_what_was_found_and_has_no_server_is_left_for_good(tmp_path: Path) -> None:
    """A directory that somebody has named may look like one that was found; it stays theirs."""
    home = home_of_one()
    assert not is_left_for_good(home)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    name = f"{gone.pid}-{'a' * 16}"
    assert is_left_for_good(home.with_name(name))
    assert not is_left_for_good(home.with_name("named"))
    assert not is_left_for_good(tmp_path / name)


def test_what_others_left_behind_is_found_beside_ones_own(temporary: Path) -> None:
    """Only directories of that form, only of parents that are gone, never one's own."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert not psutil.pid_exists(gone.pid)
    home = temporary / f"{gone.pid}-{'a' * 16}"
    deserted = temporary / f"{gone.pid}-{'b' * 16}"
    for path in (home, deserted, temporary / f"{os.getpid()}-{'c' * 16}", temporary / "12-notes"):
        path.mkdir()
    (temporary / f"{gone.pid}-{'d' * 16}").symlink_to(deserted)
    (temporary / f"{gone.pid}-{'e' * 16}").touch()
    assert list(left_behind(home)) == [deserted]
