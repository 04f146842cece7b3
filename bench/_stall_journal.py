"""What stalls.py keeps of its runs: one JSON object a line, written as things happen.

A line tells of a session (`session`: machine and settings) or of a run of one tool on one loop, by
its `run`: `started`, `truth`, `hold`, `control`, `reports`, `without`, `missing`, `failed`. A run
that was killed leaves everything up to there, and several files read together are one result.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _stall_records import Answer, Control, Hold, Report, Run, Truth

Line = dict[str, Any]


class Journal:
    """Lines in memory and, if there is a path, at the end of that file."""

    def __init__(self, path: Path | None) -> None:
        self.lines: list[Line] = []
        self._path = path

    def add(self, **line: Any) -> None:
        """Keep one line, now."""
        self.lines.append(line)
        if self._path is not None:
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")

    def begin(self, tool: str, loop: str, planned: int) -> str:
        """Begin with a run; its name is returned."""
        run = uuid.uuid4().hex[:12]
        self.add(run=run, started={"tool": tool, "loop": loop, "planned": planned})
        return run


def read(paths: Iterable[Path]) -> list[Line]:
    """All lines of the files; what a killed run left half-written is passed over."""
    lines: list[Line] = []
    for path in paths:
        for text in path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except json.JSONDecodeError:
                continue
    return lines


def runs(lines: Iterable[Line]) -> list[Run]:
    """The runs that `lines` tell of, in the order in which they were begun."""
    found: dict[str, Run] = {}
    for line in lines:
        if "started" in line:
            found[line["run"]] = Run(**line["started"])
        elif "run" in line:
            _take_in(found[line["run"]], line)
    return list(found.values())


def sessions(lines: Iterable[Line]) -> Sequence[Line]:
    """Machine and settings of each session."""
    return [line["session"] for line in lines if "session" in line]


def _take_in(run: Run, line: Line) -> None:
    if "truth" in line:
        run.truths.append(Truth(**line["truth"]))
    if "hold" in line:
        run.holds.append(_hold(line["hold"]))
    if "control" in line:
        run.controls.append(Control(**line["control"]))
    for said in line.get("reports", ()):
        run.reports[said["id"]] = Report(**said)
    run.missing = line.get("missing", run.missing)
    run.failed = line.get("failed", run.failed)
    run.without = line.get("without", run.without)


def _hold(said: Line) -> Hold:
    answers = [Answer(one["at"], Report(**one["report"])) for one in said["answers"]]
    return Hold(Truth(**said["truth"]), answers)
