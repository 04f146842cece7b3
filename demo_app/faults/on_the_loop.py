"""What holds the event loop."""

from __future__ import annotations

import html
import re
import statistics
import time
from collections.abc import Iterable
from typing import NamedTuple

from demo_app import switches


class Sale(NamedTuple):
    """What one article sold for, in cents."""

    category: str
    name: str
    cents: int


def render_on_the_loop(sales: Iterable[Sale]) -> str:
    """Render a report in the coroutine itself: some milliseconds in which nobody else runs.

    Shown: a small part of the requests with a large share of the event loop, and a longest step
    far above every other route's. A thread or process pool would be the place for it.
    """
    rows = sorted(sales, key=lambda sale: (sale.category, -sale.cents))
    median = statistics.median(sale.cents for sale in rows) if rows else 0
    cells = (
        f"<tr><td>{html.escape(category)}</td><td>{html.escape(name)}</td>"
        f"<td>{cents / 100:,.2f}</td><td>{'above' if cents > median else 'below'} median</td></tr>"
        for category, name, cents in rows
    )
    return f"<table>{''.join(cells)}</table>"


def fail_every_fifth_refund(number: int) -> None:
    """A bug: every fifth order cannot be refunded and the exception is nobody's.

    Shown: status 500 with the exception's class as ``error_type``, on this route only.
    """
    if number % 5 == 0:
        raise LedgerError(f"the ledger of order {number} does not add up")


def ask_the_bank_on_the_loop(number: int) -> None:
    """A driver that blocks, called in a coroutine: for 80 ms nobody else runs.

    Only where ``switches`` has it on. Shown: a stall a call, cause ``blocking_call``, with this
    function's name, the route that called it and the requests that had to wait. A driver that
    awaits, or a thread, would do.
    """
    if switches.is_on(ask_the_bank_on_the_loop) and number % 4 == 0:
        time.sleep(0.08)


def search_by_pattern() -> None:
    """A regular expression that backtracks: C code that keeps the interpreter to itself.

    Only where ``switches`` has it on. Shown: a stall a call, cause ``cpu``, with this function's
    name, although no Python runs while it lasts.
    """
    if switches.is_on(search_by_pattern):
        re.match(*_SLOW)


_SLOW = ("(a+)+$", "a" * 21 + "b")  # some 100 ms


class LedgerError(Exception):
    """What the bug above ends in."""
