"""The tables that stalls.py prints of its runs, fresh ones or such as were read from files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from _stall_controls import CONTROLS, HEALTHY
from _stall_placements import PLACEMENTS
from _stall_plan import ALL_KINDS
from _stall_records import Run
from _stall_scores import healthy, percent, score
from _stats import poisson_limit
from _table import console, table

OWN = "loopscope"
_FLOOR = "none"
_BEHIND_S = 0.2
"""A duration so far that is further behind has stopped growing."""

Scores = dict[tuple[str, str], dict[str, Any]]
"""What each tool came to on each kind of loop."""


def show(runs: Sequence[Run]) -> None:
    """Print all tables, and what is not in them."""
    scores = scored(runs)
    if scores:
        summary(scores)
        durations(scores)
        alarms(scores)
        holds(scores)
        kinds(scores)
        own(scores)
    for line in dict.fromkeys(shortfalls(runs)):
        console.print(line)


def scored(runs: Sequence[Run]) -> Scores:
    """The runs of the same tool on the same loop, together."""
    groups: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        if not run.missing:
            groups.setdefault((run.tool, run.loop), []).append(run)
    return {pair: score(group) for pair, group in sorted(groups.items(), key=_place)}


def shortfalls(runs: Sequence[Run]) -> list[str]:
    """What was to be measured and was not."""
    told = []
    for run in runs:
        name = f"{run.tool} on {run.loop}"
        if run.missing:
            told.append(f"{name} is left out: {run.missing}")
        if run.without:
            told.append(f"{name} is without {', '.join(run.without)}: not installed")
        if run.failed:
            told.append(
                f"{name} FAILED after {len(run.truths)} of {run.planned} stalls: {run.failed}"
            )
    return told


def summary(scores: Scores) -> None:
    """One row a tool and loop."""
    columns = (
        "",
        "detected",
        "line",
        "culprit",
        "cause",
        "wrong",
        "error ms",
        "events",
        "false/h",
        "idle CPU",
    )
    rows = [
        [_name(pair) + ", failed" * found["failed"], *_summary(found)]
        for pair, found in scores.items()
    ]
    table("Stalls found, with where each rate surely lies (Wilson, 95 %)", columns, rows)


def _summary(found: dict[str, Any]) -> list[str]:
    """What a tool never says is a dash, not a nought."""
    says, error, events = found["says"], found["error_ms"], found["events_per_stall"]
    count, hours = healthy(found["controls"])
    return [
        percent(found["detected"], sure=True),
        percent(found["located"], sure=True) if says["location"] else "—",
        percent(found["identified"], sure=True) if says["culprit"] else "—",
        percent(found["explained"], sure=True) if says["cause"] else "—",
        percent(found["wronged"], sure=True) if says["location"] or says["culprit"] else "—",
        f"{error['median']:.1f}/{error['p95']:.1f}" if error else "—",
        f"{events:.1f}" if events else "—",
        f"{count / hours:.0f} (<{poisson_limit(count) / hours:.0f})" if hours else "—",
        "—" if found["idle_cpu"] is None else f"{found['idle_cpu']:.2%}",
    ]


def durations(scores: Scores) -> None:
    """Detected by how long a stall was asked to be, and reports of what was too short to report."""
    watching = _watching(scores)
    lengths = sorted({d for found in watching.values() for d in found["by_duration"]}, key=float)
    rows = [
        [
            _name(pair),
            *(_of(found["by_duration"].get(length)) for length in lengths),
            _of(found["short"]),
            str(found["disturbed"]),
        ]
        for pair, found in watching.items()
    ]
    table(
        "Detected/of, by duration",
        ("", *(f"{length} ms" for length in lengths), "too short", "disturbed"),
        rows,
    )


def alarms(scores: Scores) -> None:
    """False alarms by control."""
    names = [
        name for name in CONTROLS if any(name in found["controls"] for found in scores.values())
    ]
    longest = {
        name: max(
            found["controls"].get(name, {"seconds": 0})["seconds"] for found in scores.values()
        )
        for name in names
    }
    heads = [f"{name}, {_time(longest[name])}" if name in HEALTHY else name for name in names]
    rows = []
    for pair, found in scores.items():
        given = found["controls"]
        missing = _missing(found)
        cells = [
            _alarms(given[name], longest[name]) if name in given else missing for name in names
        ]
        rows.append([_name(pair), *cells, str(found["stray"])])
    table(
        "False alarms (and in which time, where a tool had less of it)",
        ("", *heads, "stray"),
        rows,
    )


def _alarms(control: dict[str, Any], longest_s: float) -> str:
    text = str(control["alarms"])
    if control["seconds"] < 0.9 * longest_s:
        text += f" in {_time(control['seconds'])}"
    return text


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.1f} min"


def holds(scores: Scores) -> None:
    """What could be learnt of a stall of seconds while it lasted."""
    watching = _watching(scores)
    asked = [hold["kind"] for found in watching.values() for hold in found["holds"]]
    names = list(dict.fromkeys(asked))
    rows = [
        [
            _name(pair),
            *(
                _seen([hold for hold in found["holds"] if hold["kind"] == name]) or _missing(found)
                for name in names
            ),
        ]
        for pair, found in watching.items()
    ]
    if names:
        table(
            "Asked while it lasts: seen after, what was said of it → and when it was over",
            ("", *names),
            rows,
        )


def _seen(found: Sequence[dict[str, Any]]) -> str:
    """The latest of several: a tool that can tell, can tell each time."""
    if not found:
        return ""
    last = found[-1]
    later = "named" if last["named"] else "detected" if last["detected"] else "missed"
    if last["seen_after_s"] is None:
        return f"not seen → {later}"
    where = "line" if last["located"] else "wrong line" if last["location"] else "no line"
    behind = f", {last['lag_s']:.1f} s behind" if last["lag_s"] >= _BEHIND_S else ""
    return f"{last['seen_after_s']:.2f} s, {where}{behind} → {later}"


def kinds(scores: Scores) -> None:
    """Each tool by kind and placement, a table a loop."""
    for loop in dict.fromkeys(loop for _, loop in scores):
        watching = {tool: s for (tool, its), s in _watching(scores).items() if its == loop}
        rows = []
        for part, listed in (("by_kind", ALL_KINDS), ("by_placement", (*PLACEMENTS, "loop"))):
            found = watching.values()
            names = [name for name in listed if any(name in one[part] for one in found)]
            rows += [[name, *(_cell(one, part, name) for one in found)] for name in names]
        if rows:
            table("Detected·named/of", (f"on {loop}", *watching), rows)


def own(scores: Scores) -> None:
    """Where loopscope falls short: everything by kind, a table a loop."""
    columns = ("detected", "should name", "named", "culprit", "cause", "said instead", "wrong")
    for (tool, loop), found in scores.items():
        if tool == OWN and found["by_kind"]:
            rows = [
                [kind, *_own(found["by_kind"][kind])]
                for kind in ALL_KINDS
                if kind in found["by_kind"]
            ]
            table(f"{OWN} on {loop}, by kind", ("", *columns), rows)


def _own(found: dict[str, Any]) -> list[str]:
    return [
        _of(found["detected"]),
        found["names"],
        _of(found["named"]),
        _of(found["identified"]),
        _of(found["explained"]),
        ", ".join(f"{cause} {count}" for cause, count in found["mistaken_for"].items()),
        _of(found["wronged"]),
    ]


def _cell(found: dict[str, Any], part: str, name: str) -> str:
    group = found[part].get(name)
    if group is None:
        return _missing(found)
    detected, of = group["detected"]
    return f"{detected}·{group['named'][0]}/{of}"


def _missing(found: dict[str, Any]) -> str:
    """What stands where there is no result."""
    return "failed" if found["failed"] else ""


def _of(share: Sequence[int] | None) -> str:
    return f"{share[0]}/{share[1]}" if share and share[1] else "—"


def _watching(scores: Scores) -> Scores:
    """All but the floor, which reports nothing."""
    return {pair: found for pair, found in scores.items() if pair[0] != _FLOOR}


def _name(pair: tuple[str, str]) -> str:
    tool, loop = pair
    return f"{tool} · {loop}"


def _place(item: tuple[tuple[str, str], Any]) -> tuple[bool, bool, tuple[str, str]]:
    """The floor first, then loopscope, then the peers by name."""
    pair = item[0]
    return pair[0] != _FLOOR, pair[0] != OWN, pair
