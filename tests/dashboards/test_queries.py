"""Every query of every board, on a real Prometheus that scrapes a real service under load."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import httpx
import pytest
from websockets.asyncio.client import connect

from dashboards.generate import BOARDS

pytestmark = [
    pytest.mark.real_time,
    pytest.mark.skipif(which("prometheus") is None, reason="prometheus is not installed"),
]

SECONDS = 5
ROUNDS = 10
"""What is done at least, however slow the machine."""
WINDOW = "4s"
MAY_BE_EMPTY = {"CPU throttling", "CPU throttling by worker", "Exit status"}
"""Panels whose figures do not exist on every machine."""

COUNTED = "sum(http_server_request_duration_seconds_count)"

CONFIG = """
global: {{scrape_interval: 500ms, scrape_timeout: 500ms}}
scrape_configs:
  - job_name: service
    static_configs: [{{targets: ["{target}"]}}]
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(url: str) -> None:
    for _ in range(200):
        try:
            urlopen(url, timeout=1).close()
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
        else:
            return
    raise AssertionError(f"{url} did not answer")


@dataclass(frozen=True)
class Watched:
    """A Prometheus, how many requests there were to count, and when the last was counted."""

    url: str
    requests: int
    at: float

    def query(self, query: str) -> Any:
        """What a query finds at the end of the load, however long ago that is."""
        return self.ask("query", query=query, time=f"{self.at:.3f}")["result"]

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of Prometheus' API."""
        address = f"{self.url}/api/v1/{path}?{urlencode(parameters)}"
        with urlopen(address, timeout=30) as response:
            return json.load(response)["data"]

    def is_complete(self) -> bool:
        """Whether the last request has been scraped."""
        found = self.query(COUNTED)
        return bool(found) and int(float(found[0]["value"][1])) >= self.requests


def watched(url: str, requests: int) -> Watched:
    """Prometheus as soon as it has scraped every request; or as it is, if it does not get there."""
    for _ in range(50):
        found = Watched(url, requests, time.time())
        if found.is_complete():
            break
        time.sleep(0.1)
    return found


async def load(port: int) -> int:
    """Requests of every kind for a while; how many HTTP requests there were."""
    until = time.monotonic() + SECONDS
    made = rounds = 0
    async with (
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
        connect(f"ws://127.0.0.1:{port}/ws"),  # stays open, for the gauge
    ):
        while time.monotonic() < until or rounds < ROUNDS:
            rounds += 1
            paths = [
                *(f"/items/{number}" for number in range(20)),
                "/later",
                "/export",
                "/one-by-one",
                "/fan-out",
                "/pool",
                *("/thread",) * 5,
                "/block",
                "/hang",
                "/no",
            ]
            await asyncio.gather(*map(client.get, paths))
            made += len(paths)
            async with connect(f"ws://127.0.0.1:{port}/ws") as websocket:
                await websocket.send("hello")
                await websocket.recv()
            await asyncio.sleep(0.1)
    return made


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A Prometheus that has watched the service under load."""
    folder = tmp_path_factory.mktemp("prometheus")
    port, admin, own = free_port(), free_port(), free_port()
    config = folder / "prometheus.yml"
    config.write_text(CONFIG.format(target=f"127.0.0.1:{admin}"))
    workers = folder / "workers"
    workers.mkdir(mode=0o700)
    service = worker(port, admin, workers)
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{own}",
            "--log.level=error",
        ]
    )
    try:
        wait_for(f"http://127.0.0.1:{port}/items/1")
        wait_for(f"http://127.0.0.1:{own}/-/ready")
        kill_another(admin, workers)
        yield watched(f"http://127.0.0.1:{own}", asyncio.run(load(port)) + 2)
    finally:
        for process in (server, service):
            process.send_signal(signal.SIGTERM)
        for process in (server, service):
            process.wait(30)


def worker(port: int, admin: int, workers: Path) -> subprocess.Popen[bytes]:
    """The service, on ``port``; those in one directory are workers of one service."""
    program = Path(__file__).with_name("service.py")
    return subprocess.Popen(
        [sys.executable, program, str(port), f"127.0.0.1:{admin}"],
        env={**os.environ, "LOOPSCOPE_DIR": str(workers)},
    )


def kill_another(admin: int, workers: Path) -> None:
    """One more worker, which serves one request and is killed as soon as that is published."""
    port = free_port()
    process = worker(port, admin, workers)
    try:
        wait_for(f"http://127.0.0.1:{port}/items/1")
        url = f"http://127.0.0.1:{admin}/metrics"
        for _ in range(200):
            with suppress(URLError, ConnectionError), urlopen(url, timeout=5) as answer:
                if b"loopscope_workers 2" in answer.read():
                    break
            time.sleep(0.1)
        time.sleep(1)  # what it has counted gets into its page, and the sentinel follows it
    finally:
        process.kill()
        process.wait()


def substituted(query: str, route: str) -> str:
    """The query as Grafana would send it; a variable nobody knows stays and fails."""
    values = {"job": "service", "instance": ".*", "route": route, "__rate_interval": WINDOW}
    return re.sub(r"\$(\w+)", lambda match: values[match[1]], query)


PANELS = [
    pytest.param(panel, id=panel["title"])
    for board in BOARDS.values()
    for panel in board()["panels"]
    if panel["type"] != "row"
]


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_has_something_to_show(prometheus: Watched, panel: Any) -> None:
    """For all routes each query answers with finite numbers and the labels its legend names."""
    for target in panel["targets"]:
        result = prometheus.query(substituted(target["expr"], ".*"))
        assert result or panel["title"] in MAY_BE_EMPTY
        values = [float(series["value"][1]) for series in result]
        assert any(map(math.isfinite, values)) or panel["title"] in MAY_BE_EMPTY
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
            # not all: a stall with no line to blame has none
            assert not result or any(label in series["metric"] for series in result)


@pytest.mark.parametrize("panel", PANELS)
def test_every_panel_works_for_one_route(prometheus: Watched, panel: Any) -> None:
    """With a single route chosen every query is still valid."""
    for target in panel["targets"]:
        query = substituted(target["expr"], re.escape("/items/{item}"))
        prometheus.query(query.replace("\\", "\\\\"))


@pytest.mark.parametrize("name", BOARDS)
def test_variables_list_what_there_is(prometheus: Watched, name: str) -> None:
    """Each variable's query finds values."""
    for variable in BOARDS[name]()["templating"]["list"]:
        if variable["type"] != "query":
            continue
        match = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"])
        assert match is not None
        selector = substituted(match[1], ".*")
        assert prometheus.ask(f"label/{match[2]}/values", **{"match[]": selector})


def test_prometheus_counts_what_the_load_generator_counted(prometheus: Watched) -> None:
    """Every request is in the histogram's count, to the last one."""
    (result,) = prometheus.query(COUNTED)
    assert int(float(result["value"][1])) == prometheus.requests


def test_quantiles_come_from_the_scraped_histogram(prometheus: Watched) -> None:
    """``histogram_quantile`` over the scraped buckets orders as quantiles do."""
    rates = f"sum by (le) (rate(http_server_request_duration_seconds_bucket[{WINDOW}]))"
    values = [
        float(prometheus.query(f"histogram_quantile({q}, {rates})")[0]["value"][1])
        for q in (0.5, 0.95, 0.99)
    ]
    assert values == sorted(values)
    assert values[0] > 0
