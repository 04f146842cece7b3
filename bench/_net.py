"""Free ports, and counts read from a Prometheus exposition."""

from __future__ import annotations

import socket
import urllib.request

from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    """A loopback port that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def fetch(url: str) -> str:
    """The text behind `url`; raises `OSError` when there is none."""
    with urllib.request.urlopen(url, timeout=30) as response:
        text: str = response.read().decode()
        return text


def total(exposition: str, sample: str) -> float:
    """The sum of every sample called `sample`, whatever its labels."""
    return sum(
        found.value
        for family in text_string_to_metric_families(exposition)
        for found in family.samples
        if found.name == sample
    )
