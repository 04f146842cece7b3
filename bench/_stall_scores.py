"""What a tool's reports are worth: matched with what really happened, and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from _stall_controls import EXCUSABLE
from _stall_placements import BYSTANDER_ROUTE
from _stall_records import Control, Report, Truth
from _stall_tools import THRESHOLD_S
from _stats import quantile, wilson

SLACK_S = 0.02
"""How far beside a stall a report may lie and still be of it: a tick of the slower heartbeats."""
_NO_ACCUSATION = ("suspended", "starved")
"""Causes that say it was not the service: true of a stopped process, so no false alarm there."""


@dataclass
class Match:
    """One stall and everything that was said of it."""

    truth: Truth
    reports: list[Report] = field(default_factory=list)

    @property
    def detected(self) -> bool:
        return bool(self.reports)

    @property
    def located(self) -> bool:
        """Whether a line that blocks was named."""
        return any(names_line(report, self.truth.lines) for report in self.reports)

    @property
    def wronged(self) -> bool:
        """Whether somebody innocent was named: a line that did not block, or a bystander."""
        return any(
            (report.location is not None and not names_line(report, self.truth.lines))
            or (report.culprit is not None and BYSTANDER_ROUTE in report.culprit)
            for report in self.reports
        )

    @property
    def identified(self) -> bool:
        """Whether the route, task, or thread was named."""
        said = [report.culprit for report in self.reports if report.culprit]
        return any(name in culprit for culprit in said for name in self.truth.culprits)

    @property
    def explained(self) -> bool:
        """Whether the cause was named."""
        return any(set(report.causes or ()) & set(self.truth.causes) for report in self.reports)

    @property
    def error_s(self) -> float:
        """How far the reported duration is from the true one; several reports are joined."""
        return abs(joined(self.reports) - self.truth.duration_s)


def names_line(report: Report, lines: Iterable[str]) -> bool:
    """Whether a report's location is one of `lines`, whatever the directory it is given in."""
    return report.location is not None and report.location.rpartition("/")[2] in lines


def joined(reports: Sequence[Report]) -> float:
    """Seconds covered by the reports together: segments add up, duplicates do not."""
    total, reached = 0.0, float("-inf")
    for report in sorted(reports, key=lambda report: report.start or 0.0):
        total += max(0.0, report.end - max(reached, report.start or 0.0))
        reached = max(reached, report.end)
    return total


def match(truths: Sequence[Truth], reports: Iterable[Report]) -> tuple[list[Match], list[Report]]:
    """Give each report to the stall that it overlaps most; also what belongs to none."""
    matches = [Match(truth) for truth in truths]
    rest = []
    for report in reports:
        found = _best(matches, report)
        if found is None:
            rest.append(report)
        else:
            found.reports.append(report)
    return matches, rest


def _best(matches: Sequence[Match], report: Report) -> Match | None:
    if report.start is None:
        place = report.after - 1
        return matches[place] if 0 <= place < len(matches) else None
    best = max(matches, key=lambda match: _overlap(match.truth, report), default=None)
    return best if best is not None and _overlap(best.truth, report) > -SLACK_S else None


def _overlap(spell: Truth | Control, report: Report) -> float:
    return min(spell.end, report.end) - max(spell.start, report.start or 0.0)


def false_alarms(control: Control, reports: Iterable[Report]) -> int:
    """Reports of a spell in which nothing blocked, less those the machine itself gave reason to."""
    return sum(
        _overlap(control, report) > -SLACK_S and not _excused(control, report) for report in reports
    )


def _excused(control: Control, report: Report) -> bool:
    if control.name == "stopped":
        return any(cause in _NO_ACCUSATION for cause in report.causes or ())
    start = report.start or 0.0
    return control.name in EXCUSABLE and any(
        start < end and began < report.end for began, end in control.delays
    )


def score(
    truths: Sequence[Truth], controls: Sequence[Control], reports: Sequence[Report]
) -> dict[str, Any]:
    """Everything that the tables and the JSON say of one tool on one loop.

    Shares are `[hits, of]`. Stalls that came out shorter than the threshold do not count.
    """
    real = [truth for truth in truths if truth.duration_s > THRESHOLD_S]
    matches, rest = match(real, reports)
    detected = [match for match in matches if match.detected]
    errors = [match.error_s * 1e3 for match in detected]
    idle = [control for control in controls if control.name == "idle"]
    return {
        "stalls": len(real),
        "too_short": len(truths) - len(real),
        "detected": share(matches, lambda match: match.detected),
        "by_duration": {
            f"{wanted * 1e3:g}": share(
                [match for match in matches if match.truth.wanted_s == wanted],
                lambda match: match.detected,
            )
            for wanted in sorted({truth.wanted_s for truth in real})
        },
        "located": share([m for m in matches if m.truth.lines], lambda m: m.located),
        "wronged": share(matches, lambda match: match.wronged),
        "identified": share([m for m in matches if m.truth.culprits], lambda m: m.identified),
        "explained": share(matches, lambda match: match.explained),
        "says": {
            "location": any(report.location for report in reports),
            "culprit": any(report.culprit for report in reports),
            "cause": any(report.causes for report in reports),
        },
        "error_ms": {"median": quantile(errors, 0.5), "p95": quantile(errors, 0.95)}
        if errors
        else None,
        "events_per_stall": sum(len(match.reports) for match in detected) / len(detected)
        if detected
        else None,
        "false_alarms": {control.name: false_alarms(control, rest) for control in controls},
        "stray": sum(not any(_overlap(c, report) > -SLACK_S for c in controls) for report in rest),
        "idle_cpu": sum(c.cpu_s for c in idle) / sum(c.end - c.start for c in idle)
        if idle
        else None,
        "by_kind": _by(matches, lambda match: match.truth.kind),
        "by_placement": _by(matches, lambda match: match.truth.placement),
    }


def share(matches: Sequence[Match], hit: Callable[[Match], bool]) -> tuple[int, int]:
    """How many of the matches are hits, and of how many."""
    return sum(map(hit, matches)), len(matches)


def percent(hits_of: tuple[int, int], *, sure: bool = False) -> str:
    """A share as the tables show it, with where it surely lies if asked for."""
    hits, of = hits_of
    if not of:
        return "—"
    text = f"{hits / of:.0%}"
    if sure:
        low, high = wilson(hits, of)
        text += f" ({low * 100:.0f}-{high * 100:.0f})"
    return text


def _by(matches: Sequence[Match], key: Callable[[Match], str]) -> dict[str, dict[str, Any]]:
    groups: dict[str, list[Match]] = {}
    for one in matches:
        groups.setdefault(key(one), []).append(one)
    return {
        name: {
            "detected": share(group, lambda match: match.detected),
            "located": share(group, lambda match: match.located),
            "wronged": share(group, lambda match: match.wronged),
            "explained": share(group, lambda match: match.explained),
        }
        for name, group in groups.items()
    }
