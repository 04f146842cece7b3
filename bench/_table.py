"""What the benchmarks print: tables, verdicts, and the machine they ran on."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

console = Console(width=None if os.isatty(1) else 120, highlight=False)


@dataclass(frozen=True)
class Verdict:
    """One promise, what was measured (maybe nothing), and whether it holds: None if unknown."""

    promise: str
    measured: str
    kept: bool | None


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print `rows`, the first column to the left and the others to the right."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for place, column in enumerate(columns):
        drawn.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console.print(drawn)
    console.print()


def verdicts(found: Sequence[Verdict]) -> None:
    """Print each promise with its measured value and whether it passes."""
    words = {True: "[green]pass[/]", False: "[red]FAIL[/]", None: "[yellow]open[/]"}
    for verdict in found:
        measured = verdict.measured or "not measured"
        console.print(f"{words[verdict.kept]}  {verdict.promise}: {measured}")


def broken(found: Sequence[Verdict]) -> bool:
    """Whether a promise was measured and did not hold."""
    return any(verdict.kept is False for verdict in found)


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where and with what a run was made: the part of a result that explains its figures."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {name: _version(name) for name in packages},
    }


def describe(where: dict[str, Any]) -> None:
    """Print the result of `machine` on two lines."""
    console.print(
        f"Python {where['python']} on {where['processor']}, {where['cpus']} CPUs,"
        f" load average {where['load_average']} at the start"
    )
    console.print(", ".join(f"{name} {found}" for name, found in where["versions"].items()) + "\n")


def save(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    path.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {path}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """The processor's name where Linux tells it, else what Python knows."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
