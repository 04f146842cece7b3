"""What the demo says while it works; on a terminal in place and in colour, else as plain lines."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text

from demo_app import accounts, freezes, pools, verdict
from demo_app.accounts_table import awaits_table, phases_table
from demo_app.freezes import Freeze
from demo_app.load import Load
from demo_app.measure import NoFiguresError
from demo_app.pools_table import pools_table
from demo_app.seen import Seen
from demo_app.stack import Part, Stack
from demo_app.table import routes_table

WIDTH = 100
_PLAIN_EVERY_S = 3.0
_KEEP_RUNNING = "make demo ARGS=--serve"
_KEEP_RUNNING_BARE = "python -m demo_app --serve"


def console() -> Console:
    """A console on standard output; 100 columns where there is no terminal to ask."""
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")  # an output that cannot show █ gets a question mark
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def opening(out: Console, *, wanted: int, given: int) -> None:
    """What is about to happen, and on which port loopscope will be if not the usual one."""
    out.print("\n[bold]loopscope demo[/]  a real service, a real database, real load\n")
    if wanted != given:
        out.print(f"  [yellow]![/] port {wanted} is taken, so loopscope listens on {given}")


def part(out: Console, started: Part) -> None:
    """One line about a part that has become ready."""
    out.print(
        f"  [green]✓[/] [bold]{started.name:<12}[/]{started.address:<36}"
        f"[dim]{started.remark:<38}{started.seconds:5.1f} s[/]",
        soft_wrap=True,
    )


def addresses(out: Console, running: Stack, *, serving: bool) -> None:
    """Where to look while it runs."""
    out.print()
    if not serving:
        return
    for what, url in (
        ("metrics", f"{running.admin_url}/metrics"),
        ("stalls", f"{running.admin_url}/api/stalls"),
        ("in flight", f"{running.admin_url}/api/requests"),
        ("awaits", f"{running.admin_url}/api/awaits"),
        ("pools", f"{running.admin_url}/api/pools"),
        ("snapshot", f"{running.admin_url}/api/snapshot"),
        ("the shop", f"{running.service_url}/docs"),
    ):
        out.print(f"  {what:<10}[bold cyan]{url}[/]", soft_wrap=True)
    out.print("\n  Gentle load until Ctrl-C, then the figures.\n")


@contextmanager
def load_display(out: Console, load: Load) -> Iterator[Callable[[], None]]:
    """Shows where the load stands whenever the function it gives is called."""
    if not out.is_terminal or out.is_dumb_terminal:
        yield _plain_display(out, load)
        return
    columns = (TextColumn(" "), SpinnerColumn(), BarColumn(30), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=out) as progress:
        total = None if math.isinf(load.plan.seconds) else load.plan.seconds
        task = progress.add_task("", total=total, state="")
        yield lambda: progress.update(task, completed=load.elapsed, state=_state(load))


def _plain_display(out: Console, load: Load) -> Callable[[], None]:
    said_at = time.monotonic()

    def show() -> None:
        nonlocal said_at
        if time.monotonic() - said_at >= _PLAIN_EVERY_S:
            said_at = time.monotonic()
            out.print(f"  load: {_state(load)}")

    return show


def _state(load: Load) -> str:
    tally, elapsed = load.tally, max(load.elapsed, 0.001)
    planned = "" if math.isinf(load.plan.seconds) else f" of {load.plan.seconds:g}"
    return (
        f"{elapsed:.1f}{planned} s   {tally.requests:,} requests   "
        f"{tally.requests / elapsed:.0f}/s   {tally.errors:,} errors"
    )


def results(out: Console, running: Stack, load: Load, seen: Seen) -> bool:
    """The tables and what follows from them; whether everything agrees.

    Raises ``NoFiguresError`` if there is nothing to show.
    """
    figures = seen.figures
    if not figures.requests:
        raise NoFiguresError("loopscope counted no requests at all")
    out.print(
        f"\n  [bold]What loopscope saw[/] [dim]in {figures.seconds:.1f} s, from two scrapes of[/] "
        f"[cyan]{running.admin_url}/metrics[/]\n"
    )
    awaits = accounts.awaits(seen.window, figures)
    pooled = pools.read(seen.window, seen.pools)
    for heading, table in (
        ("", routes_table(figures)),
        ("Where the time of requests went", phases_table(figures)),
        ("What they awaited for longest", awaits_table(awaits)),
        ("How busy the pools were", pools_table(pooled) if pooled else None),
    ):
        if table is None:
            continue
        if heading:
            out.print(f"  [bold]{heading}[/]\n")
        out.print(Padding(table, (0, 0, 1, 2), expand=False))
    checks = (verdict.agreement(load.tally, figures), verdict.conservation(figures))
    out.print(
        _sentences(
            checks,
            accounts.savings(seen.sequential, figures),
            accounts.outliving(seen.window),
            pools.remarks(pooled, seen.window, figures, seen.pools),
            accounts.bounds(seen.window, figures),
            verdict.stall_remarks(seen.stalls, seen.single_stalls),
            verdict.remarks(figures),
            freezes.sentinel(seen.window),
        )
    )
    return all(agreed for agreed, _ in checks)


def frozen(out: Console, stopped: Sequence[Freeze]) -> None:
    """What was to be seen of the shop while it stood still."""
    out.print("\n  [bold]And then it freezes[/] [dim]twice, after the load[/]\n")
    out.print(_sentences(freezes.watched(stopped)))


def _sentences(checks: Iterable[tuple[bool, Sequence[str]]], *remarks: Iterable[str]) -> Padding:
    """Sentences below each other, a mark before the first of each check."""
    grid = Table.grid(padding=(0, 1))
    for agreed, sentences in checks:
        mark = Text("✓", "green") if agreed else Text("✗", "bold red")
        for sentence in sentences:
            grid.add_row(mark, Text(sentence))
            mark = Text("·", "dim")
    for sentence in chain(*remarks):
        grid.add_row(Text("·", "dim"), Text(sentence))
    return Padding(grid, (0, 0, 0, 2), expand=False)


def closing(out: Console, running: Stack, *, serving: bool) -> None:
    """Everything has been stopped; how to look at it for longer."""
    out.print("\n  [dim]Everything is stopped and removed.[/]")
    if not serving:
        out.print(
            f"  To look around yourself: [bold]{_KEEP_RUNNING}[/] (or {_KEEP_RUNNING_BARE}),\n"
            f"  then open [cyan]{running.admin_url}/metrics[/] or [cyan]/api/snapshot[/] there.\n"
        )


def interrupted(out: Console, by: signal.Signals) -> None:
    """The demo was ended before it had figures."""
    out.print(f"\n  {by.name}: everything is stopped and removed.")


def failed(out: Console, error: Exception) -> None:
    """Why there are no figures."""
    out.print(f"\n[bold red]The demo failed.[/] {escape(str(error))}", soft_wrap=True)
