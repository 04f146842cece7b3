"""A real uvicorn with real clients: what only a real server shows."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from loopscope.core.merge import ReadPage, merge
from loopscope.core.page import PageReader, read_file

SERVICE = Path(__file__).with_name("service.py")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Service:
    """The service of ``service.py`` in a process of its own."""

    def __init__(self, loop: str, directory: Path) -> None:
        self.port, self.admin, self.directory = free_port(), free_port(), directory
        environ = {
            **os.environ,
            "LOOPSCOPE_LISTEN": f"127.0.0.1:{self.admin}",
            "LOOPSCOPE_DIR": str(directory),
        }
        arguments = [sys.executable, str(SERVICE), str(self.port), loop]
        self.process = subprocess.Popen(arguments, env=environ)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}")
        self._wait()

    def _wait(self) -> None:
        for _ in range(200):
            try:
                self.client.get("/ready")
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("the service did not start")

    def published(self, name: str, **labels: str) -> float:
        with urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=10) as response:
            text = response.read().decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def becomes(self, expected: float, name: str, **labels: str) -> bool:
        """Whether a figure gets to where it should within ten seconds."""
        until = time.monotonic() + 10
        while time.monotonic() < until:
            if self.published(name, **labels) == expected:
                return True
            time.sleep(0.05)
        return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.client.close()
        self.process.send_signal(how)
        self.process.wait(10)


@pytest.fixture(params=["asyncio", "uvloop"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    running = Service(request.param, tmp_path)
    yield running
    if running.process.poll() is None:
        running.stop()


OUTCOMES = "loopscope_request_outcomes_total"


def send_and_leave(port: int, path: str, read: int = 0) -> None:
    """Ask for ``path`` and close the connection after ``read`` bytes."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        if read:
            connection.recv(read)
        else:
            time.sleep(0.1)


def test_every_request_is_counted_exactly(service: Service) -> None:
    """What the client made and what the service published is the same number."""
    for _ in range(200):
        service.client.get("/ready")
    assert service.becomes(201, OUTCOMES, http_route="/ready", outcome="ok")


def test_a_client_that_leaves_early_is_seen_to_leave(service: Service) -> None:
    """An app that never asks about its client still does not count as having answered it."""
    send_and_leave(service.port, "/slow")
    assert service.becomes(
        1, OUTCOMES, http_route="/slow", outcome="client_disconnected_mid_stream"
    )
    assert service.published(OUTCOMES, http_route="/slow", outcome="ok") == 0


def test_a_client_that_leaves_a_stream_is_no_clean_200(service: Service) -> None:
    """A truncated stream is client_disconnected_mid_stream."""
    send_and_leave(service.port, "/stream", read=10)
    labels = {"http_route": "/stream", "outcome": "client_disconnected_mid_stream"}
    assert service.becomes(1, OUTCOMES, **labels)


def test_invented_methods_hosts_and_paths_add_few_series(service: Service) -> None:
    """Clients cannot make series: not by host, not by path, not by method."""
    service.client.get("/ready")
    before = service.published("loopscope_agent_series")
    for number in range(500):
        headers = {"host": f"host{number}.example"}
        service.client.request(f"M{number}", f"/path{number}", headers=headers)
    assert service.becomes(500, OUTCOMES, http_route="_UNMATCHED")
    service.published("loopscope_agent_series")
    # one label set: duration, first byte, size, longest step, loop_run, outcome; and a live gauge
    assert service.published("loopscope_agent_series") - before <= 10


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
    service.stop()
    assert service.process.returncode in (0, -signal.SIGTERM)
    (path,) = service.directory.glob("*.page")
    assert PageReader().update(read_file(path)).closed
