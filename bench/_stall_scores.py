"""What a tool's reports are worth: matched with what really happened, and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from _stall_controls import ACCIDENTS, EXCUSABLE, HEALTHY
from _stall_placements import BYSTANDER_ROUTE
from _stall_records import Control, Hold, Report, Run, Truth
from _stall_tools import THRESHOLD_S
from _stats import quantile, wilson

SLACK_S = 0.02
"""How far beside a stall a report may lie and still be of it: a tick of the slower heartbeats."""
LONG_S = 0.1
"""From here on a line is asked for: in less, few tools have time for more than a look."""
_DISTURBED_SHARE = 0.25
"""A stall that waited for a CPU for longer than that is another one than was planned."""
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
    def named(self) -> bool:
        """Whether that was named which should be, and nobody innocent besides."""
        right = {"line": self.located, "culprit": self.identified, "cause": self.explained}
        return right[self.truth.names] and not self.wronged

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
    for report in sorted(reports, key=lambda report: report.start):
        total += max(0.0, report.end - max(reached, report.start))
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
    best = max(matches, key=lambda match: _overlap(match.truth, report), default=None)
    return best if best is not None and _overlap(best.truth, report) > -SLACK_S else None


def _overlap(spell: Truth | Control, report: Report) -> float:
    return min(spell.end, report.end) - max(spell.start, report.start)


def false_alarms(control: Control, reports: Iterable[Report]) -> int:
    """Reports of a spell in which nothing blocked, less those the machine itself gave reason to."""
    return sum(
        _overlap(control, report) > -SLACK_S and not _excused(control, report) for report in reports
    )


def _excused(control: Control, report: Report) -> bool:
    causes = report.causes or ()
    if control.name in ACCIDENTS and any(cause in _NO_ACCUSATION for cause in causes):
        return True
    if control.name == "hogs" and report.location is not None:
        return False  # the loop was late, but no line of ours was why
    return control.name in EXCUSABLE and any(
        report.start < end and began < report.end for began, end in control.delays
    )


@dataclass
class Judged:
    """One run's stalls with what was said of them, and what was said besides."""

    matches: list[Match]
    holds: list[Match]
    rest: list[Report]


def judge(run: Run) -> Judged:
    """Match a run's reports; times are comparable within a run only."""
    truths = [*run.truths, *(hold.truth for hold in run.holds)]
    matches, rest = match(truths, run.reports.values())
    played = len(run.truths)
    return Judged(matches[:played], matches[played:], rest)


def score(runs: Sequence[Run]) -> dict[str, Any]:
    """Everything that the tables say of one tool on one loop, of all its runs together.

    Shares are `[hits, of]`. Stalls that came out shorter than the threshold count for `short` only,
    those that were largely the machine's own doing for `disturbed`.
    """
    judged = [(run, judge(run)) for run in runs]
    everything = [match for _, one in judged for match in one.matches]
    planned = [match for match in everything if not _is_disturbed(match.truth)]
    matches = [match for match in planned if match.truth.duration_s > THRESHOLD_S]
    short = [match for match in planned if match.truth.duration_s <= THRESHOLD_S]
    lined = [match for match in matches if match.truth.names == "line"]
    detected = [match for match in matches if match.detected]
    errors = [match.error_s * 1e3 for match in detected]
    return {
        "detected": share(matches, lambda match: match.detected),
        "disturbed": len(everything) - len(planned),
        "short": share(short, lambda match: match.detected),
        "by_duration": {
            f"{wanted * 1e3:g}": share(
                [match for match in matches if match.truth.wanted_s == wanted],
                lambda match: match.detected,
            )
            for wanted in sorted({match.truth.wanted_s for match in matches})
        },
        "located": share(
            [match for match in lined if match.truth.duration_s >= LONG_S],
            lambda match: match.located,
        ),
        "wronged": share(matches, lambda match: match.wronged),
        "identified": share([m for m in matches if m.truth.culprits], lambda m: m.identified),
        "explained": share(matches, lambda match: match.explained),
        "says": _says(report for run in runs for report in run.reports.values()),
        "error_ms": {"median": quantile(errors, 0.5), "p95": quantile(errors, 0.95)}
        if errors
        else None,
        "events_per_stall": sum(len(match.reports) for match in detected) / len(detected)
        if detected
        else None,
        "controls": _controls(judged),
        "failed": any(run.failed for run in runs),
        "stray": sum(_is_stray(run, report) for run, one in judged for report in one.rest),
        "idle_cpu": _idle_cpu(runs),
        "holds": [
            live(hold, judgement)
            for run, one in judged
            for hold, judgement in zip(run.holds, one.holds, strict=True)
        ],
        "by_kind": _by(matches, lambda match: match.truth.kind),
        "by_placement": _by(matches, lambda match: match.truth.placement),
    }


def live(hold: Hold, afterwards: Match) -> dict[str, Any]:
    """What could be learnt of a long stall before it was over, and afterwards.

    `seen_after_s` is None where nothing could; `duration_s` and `location` are the last answer's,
    `lag_s` is how far that duration was behind.
    """
    truth = hold.truth
    told = [
        answer
        for answer in hold.answers
        if truth.start < answer.at < truth.end and _overlap(truth, answer.report) > 0
    ]
    found: dict[str, Any] = {
        "kind": truth.kind,
        "seen_after_s": None,
        "detected": afterwards.detected,
        "named": afterwards.named,
    }
    if told:
        last = told[-1]
        found |= {
            "seen_after_s": told[0].at - truth.start,
            "duration_s": last.report.duration_s,
            "lag_s": last.at - truth.start - last.report.duration_s,
            "location": last.report.location,
            "located": names_line(last.report, truth.lines),
        }
    return found


def _is_disturbed(truth: Truth) -> bool:
    return truth.queued_s > _DISTURBED_SHARE * truth.duration_s


def healthy(controls: dict[str, dict[str, Any]]) -> tuple[int, float]:
    """False alarms and hours of all spells in which nothing at all was amiss."""
    counted = [controls[name] for name in HEALTHY if name in controls]
    return sum(one["alarms"] for one in counted), sum(one["seconds"] for one in counted) / 3600


def _says(reports: Iterable[Report]) -> dict[str, bool]:
    """What a tool ever says: what it never does is no mistake of it."""
    said = {"location": False, "culprit": False, "cause": False}
    for report in reports:
        said["location"] |= report.location is not None
        said["culprit"] |= report.culprit is not None
        said["cause"] |= report.causes is not None
    return said


def _controls(judged: Iterable[tuple[Run, Judged]]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for run, one in judged:
        for control in run.controls:
            total = found.setdefault(control.name, {"alarms": 0, "seconds": 0.0})
            total["alarms"] += false_alarms(control, one.rest)
            total["seconds"] += control.end - control.start
    return found


def _is_stray(run: Run, report: Report) -> bool:
    return not any(_overlap(control, report) > -SLACK_S for control in run.controls)


def _idle_cpu(runs: Iterable[Run]) -> float | None:
    idle = [control for run in runs for control in run.controls if control.name == "idle"]
    if not idle:
        return None
    return sum(each.cpu_s for each in idle) / sum(each.end - each.start for each in idle)


def _mistakes(matches: Iterable[Match]) -> dict[str, int]:
    """The causes that were said instead of the right one, and how often."""
    return Counter(
        cause
        for match in matches
        if not match.explained
        for report in match.reports
        for cause in report.causes or ("none",)
    )


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
        text += f" {low * 100:.0f}-{high * 100:.0f}"
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
            "identified": share([m for m in group if m.truth.culprits], lambda m: m.identified),
            "explained": share(group, lambda match: match.explained),
            "named": share(group, lambda match: match.named),
            "names": group[0].truth.names,
            "mistaken_for": _mistakes(group),
        }
        for name, group in groups.items()
    }
