"""What holds for every test: our own faults are loud, and nothing of ours is left behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
import uvloop

from loopscope.agent import stop_agent
from loopscope.core.faults import Faults
from tests.blocking import let_coverage_lock, no_blocking

LOOPS: list[Any] = [
    pytest.param(("asyncio", {}), id="asyncio"),
    pytest.param(("asyncio", {"loop_factory": uvloop.new_event_loop}), id="uvloop"),
]
if sys.version_info >= (3, 12):
    import asyncio

    def _eager_loop() -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_task_factory(asyncio.eager_task_factory)
        return loop

    LOOPS.append(pytest.param(("asyncio", {"loop_factory": _eager_loop}), id="eager"))


TRIES_MORE = 2
"""How often a test about real time that fails is run again."""


def pytest_configure() -> None:
    let_coverage_lock()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A measurement that the rest of the machine has spoilt is made again; others fail at once."""
    if not config.pluginmanager.hasplugin("rerunfailures"):
        return
    for item in items:
        if item.get_closest_marker("real_time") is not None:
            item.add_marker(pytest.mark.flaky(reruns=TRIES_MORE))


def pytest_collection_finish() -> None:
    """What is there for the whole run, modules and tests, is not gone through by the collector.

    It would be by every test that asks for a collection, at a third of a second each.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(params=LOOPS)
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Tests marked ``anyio`` run on asyncio, on uvloop and, where there are any, eager tasks."""
    return request.param


@pytest.fixture(autouse=True)
def loud_faults(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fault inside loopscope fails the test, unless the test is about faults."""
    Faults.loud = request.node.get_closest_marker("quiet_faults") is None
    yield
    Faults.loud = False


@pytest.fixture(autouse=True)
def nothing_blocks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Code of ours that blocks a running event loop fails a test that is not about that."""
    allowed = request.node.get_closest_marker("blocking_allowed") is not None
    with nullcontext() if allowed else no_blocking():
        yield


def _ours(thread: threading.Thread) -> bool:
    return thread.name.startswith("loopscope") and thread.is_alive()


@pytest.fixture(autouse=True)
def nothing_left_behind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After each test: no agent, no thread, no hook of ours in the interpreter."""
    for name in list(os.environ):
        if name.startswith(("LOOPSCOPE_", "OTEL_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOOPSCOPE_LISTEN", "off")
    yield
    stop_agent()
    for thread in filter(_ours, threading.enumerate()):
        thread.join(5.0)
    assert not list(filter(_ours, threading.enumerate()))
    assert not [hook for hook in gc.callbacks if hook.__module__.startswith("loopscope")]
    assert not [each for each in sys.meta_path if type(each).__module__.startswith("loopscope")]
    assert not hasattr(ThreadPoolExecutor.submit, "__wrapped__")
    unawaited: Any = vars(warnings)["_warn_unawaited_coroutine"]
    assert not unawaited.__module__.startswith("loopscope")
