"""What a worker of stalls.py hands to its parent: what really happened, and what a tool said of it.

All times are `time.perf_counter()` of the worker, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Truth:
    """One injected stall, stamped by whoever ran it."""

    kind: str
    placement: str
    wanted_s: float
    lines: list[str]
    """`file.py:line` of the calls that block; a tool that names any of them is right."""
    causes: list[str]
    """Cause classes that describe it correctly."""
    names: str = "line"
    """What a tool should name: a `line`, or, where none is to blame, `culprit` or `cause`."""
    culprits: list[str] = field(default_factory=list)
    """Names of who did it (route, task, coroutine, thread); empty where there is none to name."""
    start: float = 0.0
    end: float = 0.0
    queued_s: float = 0.0
    """For how long the one who blocked was kept waiting for a CPU by others."""

    @property
    def duration_s(self) -> float:
        return self.end - self.start


@dataclass
class Report:
    """One thing a tool said. What a tool does not tell is None, and never held against it."""

    id: str
    """A later report with the same id takes the place of the earlier one."""
    duration_s: float
    start: float
    location: str | None = None
    """`path:line` of the deepest frame of the service's own code, where a line is accused."""
    culprit: str | None = None
    """Whatever names a route, task, coroutine or thread as the one to blame."""
    causes: list[str] | None = None
    """Every class that the tool's word for the cause takes in; fewer words take in more."""

    @property
    def end(self) -> float:
        return self.start + self.duration_s


@dataclass
class Control:
    """A spell in which the loop was not blocked, and so nothing should be reported."""

    name: str
    start: float
    end: float
    cpu_s: float
    delays: list[tuple[float, float]] = field(default_factory=list)
    """When the machine itself held the loop up: reports of these are no mistakes."""


@dataclass
class Answer:
    """What a tool said of a stall when it was asked, maybe while the stall lasted."""

    at: float
    """When the answer was there."""
    report: Report


@dataclass
class Hold:
    """A stall so long that it matters what can be learnt before it ends."""

    truth: Truth
    answers: list[Answer] = field(default_factory=list)


@dataclass
class Run:
    """What one worker process gave: one tool on one loop, all of it or a part."""

    tool: str
    loop: str
    planned: int = 0
    """Stalls that were to be played."""
    truths: list[Truth] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    controls: list[Control] = field(default_factory=list)
    reports: dict[str, Report] = field(default_factory=dict)
    missing: str = ""
    """Why the tool does not run here."""
    failed: str = ""
    """What ended the run before it was through."""
    without: list[str] = field(default_factory=list)
    """Kinds left out, as what they need is not installed."""
