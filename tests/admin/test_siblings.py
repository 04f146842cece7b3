"""Workers that tell each other, and whoever else asks, what is in no page."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from loopscope import Loopscope
from loopscope.admin import siblings
from loopscope.admin.bystander import Bystander
from loopscope.admin.figures import Figures, of_worker
from loopscope.admin.listener import AdminListener
from loopscope.admin.siblings import Siblings, Told
from loopscope.agent import current_agent, stop_agent
from loopscope.core.clock import Clock
from loopscope.core.faults import Faults
from loopscope.core.group import Group
from loopscope.exporters.profile import UNTOLD, BlockingProfile
from tests.admin.sibling import SEQUENCES
from tests.admin.test_listener import get
from tests.e2e.running import PATIENCE, ROOT, eventually
from tests.harness import call, samples

pytestmark = pytest.mark.real_time

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Worker:
    """A process that runs ``sibling``."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.admin.sibling", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
        )
        self.name = str(self.process.pid)

    def wait_until_ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == b"ready\n"

    def end(self) -> int:
        """Let it end by itself."""
        self.process.communicate(timeout=PATIENCE)
        return self.process.returncode

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It does not get to run."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def clear_away(self) -> None:
        self.process.kill()
        self.process.communicate()


@contextmanager
def workers(directory: Path, count: int) -> Iterator[list[Worker]]:
    """So many processes that share ``directory``."""
    with ExitStack() as stack:
        started = [Worker(directory) for _ in range(count)]
        for worker in started:
            stack.callback(worker.clear_away)
        for worker in started:
            worker.wait_until_ready()
        yield started


@contextmanager
def bystander(directory: Path) -> Iterator[Figures]:
    """The figures as somebody sees them who is no worker."""
    group = Group(directory, Clock(), own=lambda: None)
    pages = Bystander(group, Clock(), Faults())
    try:
        yield Figures(pages, siblings=Siblings(group, Faults()))
    finally:
        pages.close()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def pair(home: Path) -> Iterator[list[Worker]]:
    """Two workers, for all that leaves them as they are."""
    with workers(home, 2) as started:
        yield started


@pytest.fixture
def figures(pair: list[Worker], home: Path) -> Iterator[Figures]:
    with bystander(home) as found:
        yield found


def names(several: Sequence[Worker]) -> set[str]:
    return {each.name for each in several}


def files(directory: Path, kind: str = "*") -> set[str]:
    return {path.name for path in directory.glob(kind)}


def seconds_by_route(profile: BlockingProfile) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for root, _, each in profile.stacks():
        seconds[root] = seconds.get(root, 0.0) + each
    return seconds


def counted_by_route(figures: Figures) -> dict[str, float]:
    """Seconds of all requests that are over."""
    families = figures.snapshot()["metrics"]
    durations = next(f for f in families if f["name"] == "http_server_request_duration_seconds")
    return {each["labels"]["http_route"]: each["sum"] for each in durations["series"]}


def test_requests_of_all_workers_are_listed(figures: Figures, pair: list[Worker]) -> None:
    """The oldest first, each with the worker it is in; the number is that of all."""
    document = figures.requests(100)
    assert document["in_flight"] == 2
    assert document["silent"] == []
    assert {request["worker"] for request in document["requests"]} == names(pair)
    assert {request["route"] for request in document["requests"]} == {"/holds"}
    ages = [request["age_s"] for request in document["requests"]]
    assert ages == sorted(ages, reverse=True)
    assert len(figures.requests(1)["requests"]) == 1


def test_what_is_held_in_all_workers_is_in_one_pool(figures: Figures, pair: list[Worker]) -> None:
    """With the worker that holds it and the line that took it."""
    document = figures.pools()
    assert document["silent"] == []
    (pool,) = [pool for pool in document["pools"] if pool["pool"] == "shelf"]
    assert {use["worker"] for use in pool["held"]} == names(pair)
    assert all(use["site"].startswith("tests/admin/sibling.py:") for use in pool["held"])
    assert {use["route"] for use in pool["held"]} == {"/holds"}


def test_one_sequence_in_several_workers_is_one(figures: Figures) -> None:
    """Its requests and seconds are those of all of them; so are the waits it is made of."""
    document = figures.awaits("/sequence", 100)
    assert document["silent"] == []
    (sequence,) = document["sequential"]
    assert sequence["requests"] == 2 * SEQUENCES

    def counts() -> list[int]:
        return [wait["count"] for wait in figures.awaits("/sequence", 100)["awaits"]]

    # Waits are read from pages, where each worker writes them now and then.
    assert eventually(lambda: counts() == [2 * SEQUENCES] * 2)
    assert figures.awaits("/computes", 100)["sequential"] == []


def test_what_blocked_any_worker_is_in_one_profile(figures: Figures) -> None:
    """The stalls of both are one stack, or two that end in one function."""
    profiled = figures.blocking_profile()
    assert profiled.silent == []
    stacks = [held for held in profiled.profile.stacks() if held[0] == "/computes"]
    assert {stack[-1].rpartition(" ")[2] for _, stack, _ in stacks} == {"computes"}
    assert sum(seconds for _, _, seconds in stacks) > 2 * 0.25


def test_where_time_went_is_right_to_the_second_for_all(figures: Figures) -> None:
    """Every route's seconds are those of its requests, in whatever worker; or one route's are."""
    counted = counted_by_route(figures)
    assert set(counted) == {"/sequence", "/computes"}
    profiled = figures.wall_profile(None)
    assert profiled.silent == []
    seconds = seconds_by_route(profiled.profile)
    assert {route: seconds[route] for route in counted} == pytest.approx(counted)
    assert UNTOLD not in {frame for _, stack, _ in profiled.profile.stacks() for frame in stack}
    assert set(seconds_by_route(figures.wall_profile("/sequence").profile)) == {"/sequence"}


def test_exemplars_of_a_worker_are_published_by_whoever_answers(figures: Figures) -> None:
    """In OpenMetrics; each bucket has one, whichever worker saw it."""
    body, content_type = figures.metrics(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    lines = b"".join(body).decode().splitlines()
    assert [line for line in lines if 'http_route="/computes"' in line and "# {trace_id=" in line]
    assert lines[-1] == "# EOF"


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_the_services_own_metrics_are_published_worker_by_worker(
    figures: Figures, pair: list[Worker], accept: str
) -> None:
    """Nobody but the service knows how to add them up; what we publish ourselves is left out."""
    text = b"".join(figures.metrics(accept)[0]).decode()
    sold = list(samples(text, "shop_sold_total", {"kind": "book"}))
    assert {each.labels["worker"]: each.value for each in sold} == {each.name: 3.0 for each in pair}
    (count, *_) = samples(text, "shop_price_count", {"worker": pair[0].name})
    assert count.value == 1
    assert text.count("# TYPE process_resident_memory_bytes ") == 1
    assert text.count("# EOF") == (accept == OPENMETRICS)


def test_exemplars_are_asked_for_only_where_they_can_be_published(
    figures: Figures, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A scrape in Prometheus' own format costs a worker's siblings nothing."""
    asked: list[Any] = []

    def ask(self: Siblings, part: str, parameters: Any, patience: float) -> Told:
        asked.append((part, *parameters))
        return Told()

    monkeypatch.setattr(Siblings, "ask", ask)
    serve(tmp_path)
    agent = current_agent()
    assert agent is not None
    worker = of_worker(agent)
    worker.metrics("")
    assert asked == []
    worker.metrics(OPENMETRICS)
    figures.metrics("")
    assert asked == [("page", "exemplars"), ("page", "users")]


def test_a_frozen_worker_is_named_and_costs_its_time_once(
    figures: Figures, pair: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the others say is there; two that are silent take as long as one; then all is well."""
    monkeypatch.setattr(siblings, "PATIENCE", 1.0)
    first, second = pair
    with first.frozen():
        document = figures.requests(100)
        assert document["silent"] == [first.name]
        assert [request["worker"] for request in document["requests"]] == [second.name]
        assert figures.pools()["silent"] == [first.name]
        assert figures.wall_profile(None).silent == [first.name]
        with second.frozen():
            before = time.monotonic()
            assert set(figures.requests(100)["silent"]) == names(pair)
            assert time.monotonic() - before < 2 * siblings.PATIENCE
    assert figures.requests(100)["in_flight"] == 2


def test_one_that_begins_to_hang_is_given_up(
    figures: Figures, pair: list[Worker], home: Path
) -> None:
    """Whoever knows of it does not wait until time is up."""
    first, second = pair
    looks: list[str] = []

    def hang() -> list[str]:
        looks.append("")
        return [first.name] if len(looks) > 5 else []

    others = Siblings(Group(home, Clock(), own=lambda: None), Faults(), hang)
    with first.frozen():
        before = time.monotonic()
        told = others.ask("requests", {"limit": "1"}, 60.0)
        assert time.monotonic() - before < 30.0
    assert told.silent == [first.name]
    assert [worker for worker, _ in told.answers] == [second.name]


def test_a_worker_that_speaks_another_language_is_silent() -> None:
    """One of another version, say: nothing it said is half understood."""
    told = Told([("1", {"in_flight": 1}), ("2", {"requests": 2}), ("3", {"in_flight": "many"})])
    assert told.read(lambda answer: int(answer["in_flight"])) == [1]
    assert told.silent == ["2", "3"]


@pytest.mark.parametrize("how", ["closed", "killed"])
def test_nothing_of_a_worker_that_has_ended_is_left(tmp_path: Path, how: str) -> None:
    """No socket: it takes its own away, or whoever folds its page does. Nobody is silent then."""
    with workers(tmp_path, 2) as (worker, other), bystander(tmp_path) as figures:
        assert len(files(tmp_path, "*.sock")) == 2
        if how == "closed":
            assert worker.end() == 0
            assert len(files(tmp_path, "*.sock")) == 1
        else:
            worker.clear_away()
        document = figures.requests(100)
        assert document["silent"] == []
        assert [request["worker"] for request in document["requests"]] == [other.name]
        figures.snapshot()  # folds
        assert len(files(tmp_path, "*.sock")) == 1
        profile = figures.wall_profile(None).profile
        ended = [root for root, stack, _ in profile.stacks() if stack == (UNTOLD,)]
        assert set(ended) >= {"/sequence", "/computes"}
        counted = counted_by_route(figures)
        seconds = seconds_by_route(profile)
        assert {route: seconds[route] for route in counted} == pytest.approx(counted)
        assert other.end() == 0
        figures.snapshot()
        assert figures.requests(100) == {"in_flight": 0, "requests": [], "silent": []}
    assert files(tmp_path, "*[!s]") == {"archive", "lock"}, "apart from notes of stalls"


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def serve(directory: Path, **settings: Any) -> None:
    """Be a worker of ``directory``, whom others can ask."""
    asyncio.run(call(Loopscope(hello, directory=directory, **settings)))
    assert eventually(lambda: any(directory.glob(f"{os.getpid()}-*.sock")))


def url() -> str:
    agent = current_agent()
    assert agent is not None
    assert isinstance(agent._front, AdminListener)
    return agent._front.url


def test_a_worker_answers_for_its_siblings(pair: list[Worker], home: Path) -> None:
    """Over HTTP, and for itself as well; profiles name in a header whom they lack."""
    serve(home, listen="127.0.0.1:0")
    document = json.loads(get(url() + "/api/requests")[2])
    assert {request["worker"] for request in document["requests"]} == names(pair)
    first, _ = pair
    with first.frozen():
        _, headers, _ = get(url() + "/api/awaits/profile")
        assert headers["loopscope-silent"] == first.name
    _, headers, body = get(url() + "/api/stalls/profile")
    assert "loopscope-silent" not in headers
    assert b"sibling.py" in body
    assert b"trace_id" in get(url() + "/metrics", accept=OPENMETRICS)[2]
    stop_agent()


def test_a_worker_answers_while_it_is_making_something_itself(tmp_path: Path) -> None:
    """Or two workers that ask each other would wait for each other until both gave up."""
    serve(tmp_path)
    agent = current_agent()
    assert agent is not None
    over = threading.Event()
    agent.renderer.submit(over.wait)
    try:
        with bystander(tmp_path) as figures:
            assert figures.requests(100)["silent"] == []
    finally:
        over.set()


def test_the_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    """Whatever the directory allows."""
    serve(tmp_path)
    (path,) = tmp_path.glob("*.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    stop_agent()
    assert not path.exists()


def test_a_worker_without_a_socket_is_silent(tmp_path: Path) -> None:
    """It is alive, and cannot be asked; nothing it has counted is missing."""
    serve(tmp_path)
    (path,) = tmp_path.glob("*.sock")
    path.unlink()
    with bystander(tmp_path) as figures:
        assert figures.requests(100)["silent"] == [str(os.getpid())]
        assert b"http_server_request_duration_seconds_count" in b"".join(figures.metrics("")[0])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names are shortened by /proc")
def test_a_directory_with_a_long_name_has_sockets_too(tmp_path: Path) -> None:
    """The address of a unix socket has some 100 bytes, a path as many as it likes."""
    home = tmp_path / ("long" * 40)
    serve(home)
    with bystander(home) as figures:
        assert figures.requests(100)["silent"] == []


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_leaves_its_parents_socket_alone(tmp_path: Path) -> None:
    """It lets go of it, has one of its own, and takes only that away."""
    serve(tmp_path)
    before = files(tmp_path, "*.sock")
    pid = os.fork()
    if pid == 0:
        try:
            serve(tmp_path)
            during = files(tmp_path, "*.sock")
            stop_agent()
            is_fine = len(during) == 2 and files(tmp_path, "*.sock") == before
            os._exit(0 if is_fine else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with bystander(tmp_path) as figures:
        assert eventually(lambda: figures.requests(100)["silent"] == [])
