"""Runs wrk, the HTTP load generator, and reads its report."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_UNITS_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


@dataclass(frozen=True)
class Load:
    """What one run of wrk did: requests a second, latencies in milliseconds, what went wrong."""

    per_second: float
    requests: int
    p50_ms: float
    p99_ms: float
    failures: int


def installed() -> bool:
    """Whether wrk can be found."""
    return shutil.which("wrk") is not None


def run(url: str, seconds: int, connections: int) -> Load:
    """Load `url` from one thread; raises `CalledProcessError` when wrk can't."""
    script = Path(__file__).with_name("_items.lua")
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", str(script)]
    done = subprocess.run([*command, url], check=True, capture_output=True, text=True)
    return read(done.stdout)


def read(report: str) -> Load:
    """Make sense of wrk's report; raises `ValueError` when it isn't one."""
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", report
    )
    answers = re.search(r"Non-2xx or 3xx responses: (\d+)", report)
    failures = [*(errors.groups() if errors else ()), *(answers.groups() if answers else ())]
    return Load(
        per_second=float(_find(r"Requests/sec:\s+([\d.]+)", report)),
        requests=int(_find(r"(\d+) requests in", report)),
        p50_ms=_latency(report, 50),
        p99_ms=_latency(report, 99),
        failures=sum(int(count) for count in failures),
    )


def _latency(report: str, percentile: int) -> float:
    number, unit = re.findall(rf"^\s+{percentile}%\s+([\d.]+)(us|ms|s|m)$", report, re.MULTILINE)[0]
    return float(number) * _UNITS_MS[unit]


def _find(pattern: str, report: str) -> str:
    found = re.search(pattern, report)
    if found is None:
        raise ValueError(f"wrk's report has no {pattern!r}:\n{report}")
    return found.group(1)
