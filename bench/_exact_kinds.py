"""The requests `exact.py` makes, and what each of them has to be counted as.

The number of a request says everything: its kind and its sizes. So whoever has numbers, the
generator or the service, can say to the byte what is to be published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

Sample = tuple[str, tuple[tuple[str, str], ...]]
"""A sample's name and its labels, sorted."""

COUNT = "http_server_request_duration_seconds_count"
CHUNKS = 5
"""Chunks a stream comes in."""
NUMBER = b"x-number"
"""The header a request has its number in."""


@dataclass(frozen=True)
class Kind:
    """One kind of requests. `{size}` in its path stands for bytes of the answer (of each chunk)."""

    route: str
    path: str
    status: int = 200
    answer: int = 0
    """Bytes of the answer where the path does not say."""
    method: str = "GET"
    outcome: str = "ok"
    error: str = ""
    leaves: bool = False
    """Whether the client leaves without waiting for the answer."""


ITEM = Kind("/items/{size}", "/items/{size}")
ECHO = Kind("/echo", "/echo", method="POST")
STREAM = Kind("/streams/{size}", "/streams/{size}")
REFUSED = Kind("/refused", "/refused", status=503, answer=2, outcome="error", error="503")
NOWHERE = Kind("_UNMATCHED", "/nowhere", status=404, answer=len("Not Found"))
# Whoever answers without asking whether anybody is still there has sent a status, if to nobody.
LEFT = Kind(
    "/late", "/late", answer=4, outcome="client_disconnected_mid_stream",
    error="client_disconnected_mid_stream", leaves=True,
)  # fmt: skip

_TURNS = (ITEM, ECHO, ITEM, STREAM, ITEM, ECHO, ITEM, REFUSED, ITEM, NOWHERE)
_LEAVE_EVERY = 101


def kind_of(number: int) -> Kind:
    """What request `number` is."""
    return LEFT if number % _LEAVE_EVERY == 0 else _TURNS[number % len(_TURNS)]


def size_of(number: int) -> int:
    """Bytes of the body of request `number`, sent or asked for."""
    return 1 + number * 7919 % 3000


def wire(number: int, *, keep: bool) -> bytes:
    """Request `number` as it is sent."""
    kind, size = kind_of(number), size_of(number)
    body = b"b" * size if kind.method == "POST" else b""
    head = (
        f"{kind.method} {kind.path.replace('{size}', str(size))} HTTP/1.1\r\nHost: bench\r\n"
        f"{NUMBER.decode()}: {number}\r\nContent-Length: {len(body)}\r\n"
    )
    return (head + ("" if keep else "Connection: close\r\n") + "\r\n").encode() + body


def answer_bytes(number: int) -> int:
    """Bytes of the answer to request `number`."""
    kind, size = kind_of(number), size_of(number)
    if kind is STREAM:
        return CHUNKS * size
    return size if kind in (ITEM, ECHO) else kind.answer


def amounts(numbers: Iterable[int]) -> Counter[Sample]:
    """What is to be published of requests that were recorded."""
    found: Counter[Sample] = Counter()
    for number in numbers:
        kind = kind_of(number)
        place = {"http_route": kind.route, "http_request_method": kind.method}
        status = {"http_response_status_code": str(kind.status), "error_type": kind.error}
        found[sample(COUNT, {**place, **status})] += 1
        found[sample("loopscope_request_outcomes_total", {**place, "outcome": kind.outcome})] += 1
        found[sample("http_server_response_body_size_bytes_count", place)] += 1
        found[sample("http_server_response_body_size_bytes_sum", place)] += answer_bytes(number)
        if kind.method == "POST":
            found[sample("http_server_request_body_size_bytes_count", place)] += 1
            found[sample("http_server_request_body_size_bytes_sum", place)] += size_of(number)
        if kind is STREAM:
            found[sample("loopscope_response_chunks_total", place)] += CHUNKS
    return found


SAMPLES = (
    COUNT,
    "loopscope_request_outcomes_total",
    "http_server_response_body_size_bytes_count",
    "http_server_response_body_size_bytes_sum",
    "http_server_request_body_size_bytes_count",
    "http_server_request_body_size_bytes_sum",
    "loopscope_response_chunks_total",
)
"""The names of all that `amounts` speaks of."""


def sample(name: str, labels: dict[str, str]) -> Sample:
    """A sample as a key."""
    return name, tuple(sorted(labels.items()))
