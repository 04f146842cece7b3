"""What takes the interpreter for itself: nobody inside can say anything until it is over.

C code that does not let go of the GIL stops every thread of Python, the watchdog's with the others.
What it is can be told from outside, while it lasts; inside, only that it has been.
"""

from __future__ import annotations

import re
import threading
from itertools import count

from demo_app import switches

MOST_VOUCHER = 25
"""Letters of a voucher code: what one costs doubles with each, and this many take some 2 s."""

_VOUCHER = re.compile(r"[A-Z0-9]+(-[A-Z0-9]+)*")
_CARELESS = re.compile(r"([A-Z0-9]+-?)+")
_DELIVERY = re.compile(r"(\d+,?)+;")
_NOTE = "1" * 21  # some 250 ms, for want of its semicolon
_SELDOM = 25

_searches = count()


def accept_voucher(code: str) -> bool:
    """Validate a code with a pattern that matches in many ways, all of which are tried in vain.

    Only where ``switches`` has it on, and only for codes that are nearly right: 24 x A and a !.
    Shown: while it lasts, at ``/api/stalls``, a stall that the sentinel sees from outside: cause
    ``cpu``, this function's name and the route; and for how long already, in ``/metrics``. Without
    a sentinel that would not answer. A pattern with one way to match would do.
    """
    pattern = _CARELESS if switches.is_on(accept_voucher) else _VOUCHER
    return not code or pattern.fullmatch(code) is not None


def restock_in_a_thread() -> None:
    """Read a delivery note in a worker thread, with a pattern like that: it stops the loop as well.

    Only where ``switches`` has it on, and for one search of many. Shown: stalls whose cause is
    ``gil_contention`` and which accuse no line of the loop's; seen from outside, the thread and the
    line of it that kept the interpreter. A process would be the place for it.
    """
    if switches.is_on(restock_in_a_thread) and next(_searches) % _SELDOM == 0:
        threading.Thread(target=_read_delivery_note, name="restock").start()


def _read_delivery_note() -> None:
    _DELIVERY.match(_NOTE)
