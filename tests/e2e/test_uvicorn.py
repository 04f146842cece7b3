"""A real uvicorn with real clients: what only a real server shows."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from loopscope.core.merge import ReadPage, merge
from loopscope.core.page import PageReader, read_file
from tests.e2e.running import OUTCOMES, Running, send_and_leave

pytestmark = pytest.mark.real_time

SERVICE = Path(__file__).with_name("service.py")


class Service(Running):
    """The service of ``service.py``, whose page is in ``directory``."""

    def __init__(self, loop: str, directory: Path) -> None:
        self.directory = directory
        super().__init__(
            lambda port: [sys.executable, SERVICE, str(port), loop],
            directory / "log",
            LOOPSCOPE_DIR=str(directory),
        )


LOOPS = ("asyncio", "uvloop")


@pytest.fixture(scope="module", params=LOOPS)
def shared(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """One service a loop, for tests that leave it running."""
    with Service(request.param, tmp_path_factory.mktemp("service")) as running:
        assert running.becomes(1, OUTCOMES, http_route="/ready")
        yield running


@pytest.fixture
def lasting(shared: Service) -> Service:
    """The service that goes on running, whose figures begin with the test."""
    shared.count_from_here()
    return shared


@pytest.fixture(params=LOOPS)
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A service that the test may end."""
    with Service(request.param, tmp_path) as running:
        yield running


def test_every_request_is_counted_exactly(lasting: Service) -> None:
    """What the client made and what the service published is the same number."""
    for _ in range(200):
        lasting.client.get("/ready")
    assert lasting.becomes(200, OUTCOMES, http_route="/ready", outcome="ok")


def test_a_client_that_leaves_early_is_seen_to_leave(lasting: Service) -> None:
    """An app that never asks about its client still does not count as having answered it."""
    send_and_leave(lasting.port, "/slow")
    assert lasting.becomes(
        1, OUTCOMES, http_route="/slow", outcome="client_disconnected_mid_stream"
    )
    assert lasting.published(OUTCOMES, http_route="/slow", outcome="ok") == 0


def test_a_client_that_leaves_a_stream_is_no_clean_200(lasting: Service) -> None:
    """A truncated stream is client_disconnected_mid_stream."""
    send_and_leave(lasting.port, "/stream", read=10)
    labels = {"http_route": "/stream", "outcome": "client_disconnected_mid_stream"}
    assert lasting.becomes(1, OUTCOMES, **labels)


def test_invented_methods_hosts_and_paths_add_few_series(lasting: Service) -> None:
    """Clients cannot make series: not by host, not by path, not by method."""
    lasting.client.get("/ready")
    before = lasting.published("loopscope_agent_series")
    for number in range(500):
        headers = {"host": f"host{number}.example"}
        lasting.client.request(f"M{number}", f"/path{number}", headers=headers)
    assert lasting.becomes(500, OUTCOMES, http_route="_UNMATCHED")
    lasting.published("loopscope_agent_series")
    # one label set: duration, first byte, size, longest step, loop_run, outcome; and a live gauge
    assert lasting.published("loopscope_agent_series") - before <= 10


def test_after_a_kill_every_completed_request_is_still_there(service: Service) -> None:
    """Another process reads from the page what the killed one had recorded."""
    for _ in range(100):
        service.client.get("/ready")
    assert service.becomes(101, OUTCOMES, http_route="/ready")
    service.stop(signal.SIGKILL)
    (path,) = service.directory.glob("*.page")
    reader, buffer = PageReader(), read_file(path)
    header = reader.update(buffer)
    assert header.pid == service.process.pid
    counted = sum(
        family.values(raw)[0]
        for family in merge([ReadPage(reader, buffer)])
        for raw in family.rows.values()
        if family.metric.name == OUTCOMES
    )
    assert counted == 101


def test_shutdown_ends_everything(service: Service) -> None:
    """SIGTERM ends the service as it always did, and its page says that it was closed."""
    assert service.stop() in (0, -signal.SIGTERM)
    (path,) = service.directory.glob("*.page")
    assert PageReader().update(read_file(path)).closed
