"""What holds for every exporter's test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from loopscope.agent import stop_agent
from tests.exporters.providers import set_provider


@pytest.fixture(autouse=True)
def no_provider() -> Iterator[None]:
    """Whatever OpenTelemetry provider a test sets up is gone after it."""
    yield
    stop_agent()
    set_provider(None)
