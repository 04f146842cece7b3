"""A Prometheus server's part: scrapes, and the light traffic of a service that is in use."""

from __future__ import annotations

import gzip
import http.client
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

_HEADERS = {
    "Accept": (
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2,*/*;q=0.1"
    ),
    "Accept-Encoding": "gzip",
}


@dataclass(frozen=True)
class Scrape:
    """One scrape: how long it took, bytes on the wire, and the text."""

    seconds: float
    wire_bytes: int
    text: str

    @property
    def histogram_children(self) -> int:
        """How many histogram children the text holds."""
        return self.text.count('le="+Inf"')


def scrape(url: str) -> Scrape:
    """Scrape as Prometheus does: OpenMetrics preferred, gzip; raises `OSError`."""
    where = urlsplit(url)
    started = time.perf_counter()
    connection = http.client.HTTPConnection(where.netloc, timeout=60)
    try:
        connection.request("GET", where.path, headers=_HEADERS)
        response = connection.getresponse()
        body = response.read()
        took = time.perf_counter() - started
    finally:
        connection.close()
    if response.status != 200:
        raise OSError(f"{url} answered {response.status}")
    packed = response.headers.get("Content-Encoding") == "gzip"
    text = (gzip.decompress(body) if packed else body).decode()
    return Scrape(took, len(body), text)


def request_all(service: str, routes: Iterable[int], methods: Sequence[str]) -> None:
    """Request each of these routes with each method once, so that the series come into being."""
    connection = http.client.HTTPConnection(urlsplit(service).netloc, timeout=60)
    try:
        for number, method in itertools.product(routes, methods):
            _request(connection, method, f"/things{number}/{number}")
    finally:
        connection.close()


@contextmanager
def light_traffic(service: str, per_second: float) -> Iterator[None]:
    """Request the first route at a steady rate while the block lasts."""
    done = threading.Event()
    thread = threading.Thread(target=_trickle, args=(service, 1 / per_second, done))
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _trickle(service: str, pause: float, done: threading.Event) -> None:
    connection = http.client.HTTPConnection(urlsplit(service).netloc, timeout=60)
    try:
        while not done.wait(pause):
            _request(connection, "GET", "/things0/1")
    finally:
        connection.close()


def _request(connection: http.client.HTTPConnection, method: str, path: str) -> None:
    connection.request(method, path)
    response = connection.getresponse()
    response.read()
    if response.status != 200:
        raise OSError(f"{method} {path} answered {response.status}")
