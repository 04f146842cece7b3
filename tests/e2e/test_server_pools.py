"""The server's own limits, as servers really are started: queue, connections, descriptors."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.e2e.running import PATIENCE, Command, Running
from tests.e2e.test_servers import APP, granian, gunicorn, gunicorn_alone, hypercorn

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells on Linux only"),
    pytest.mark.real_time,
]

CAPACITY = "loopscope_pool_capacity"
LIMIT = 6


def uvicorn(port: int, *options: str) -> list[str]:
    command = [sys.executable, "-m", "uvicorn", "--port", str(port), "--lifespan", "off"]
    return [*command, "--limit-concurrency", str(LIMIT), "--backlog", "77", *options, APP]


def uvicorn_with_workers(port: int) -> list[str]:
    return uvicorn(port, "--workers", "2")


def uvicorn_on_uvloop(port: int) -> list[str]:
    return uvicorn(port, "--loop", "uvloop", "--lifespan", "on", "--http", "h11")


UVICORNS = (uvicorn, uvicorn_with_workers, uvicorn_on_uvloop)
OTHERS = (gunicorn, gunicorn_alone, hypercorn)


Serve = Callable[[Command], Running]


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """One server a command, started when it is first asked for, and ended with the module."""
    with ExitStack() as running:

        @functools.cache
        def serve(command: Command) -> Running:
            log = tmp_path_factory.mktemp("server") / "log"
            return running.enter_context(Running(command, log))

        yield serve


def watched(server: Running, kind: str) -> set[str]:
    """The names of the pools of that kind that have a capacity."""
    families = server.scraper.get("/metrics", timeout=PATIENCE).text.splitlines()
    rows = [row for row in families if row.startswith(CAPACITY) and f'kind="{kind}"' in row]
    return {row.partition('pool="')[2].partition('"')[0] for row in rows}


@pytest.mark.parametrize("command", [*UVICORNS, *OTHERS, granian])
def test_the_service_s_queue_is_watched_and_ours_is_not(serve: Serve, command: Command) -> None:
    """Under the address it listens on, whatever server it is."""
    server = serve(command)
    name = f"127.0.0.1:{server.port}"
    assert server.becomes(0, "loopscope_pool_pending", pool=name)
    assert server.published(CAPACITY, pool=name) > 0
    assert f"127.0.0.1:{server.admin}" not in watched(server, "listener")
    assert server.published("loopscope_pool_in_use", kind="fd") > 10


@pytest.mark.parametrize("command", UVICORNS)
def test_uvicorn_s_limit_is_known(serve: Serve, command: Command) -> None:
    """However it was started; the backlog is the one it asked for."""
    server = serve(command)
    assert server.becomes(LIMIT - 1, CAPACITY, pool=f"uvicorn 127.0.0.1:{server.port}")
    assert server.becomes(77, CAPACITY, pool=f"127.0.0.1:{server.port}")


def test_connections_of_gunicorn_s_worker_are_counted(serve: Serve) -> None:
    """It runs uvicorn's server, and has no limit by default."""
    server = serve(gunicorn)
    server.client.get("/ready")  # connects, should that have been a while ago
    pool = f"uvicorn 127.0.0.1:{server.port}"
    assert server.becomes(1, "loopscope_pool_in_use", pool=pool)
    assert pool not in watched(server, "listener")


def test_whoever_is_turned_away_is_counted(tmp_path: Path) -> None:
    """Every 503 that clients saw, none of which the application ever heard of."""
    with Running(uvicorn, tmp_path / "log") as server:
        pool = f"uvicorn 127.0.0.1:{server.port}"
        assert server.becomes(LIMIT - 1, CAPACITY, pool=pool)
        clients = [httpx.Client(base_url=server.client.base_url) for _ in range(10)]
        statuses = [client.get("/ready").status_code for client in clients for _ in range(5)]
        for client in clients:
            client.close()
        assert statuses.count(503) > 0
        assert server.becomes(statuses.count(503), "loopscope_pool_rejected_total", pool=pool)
