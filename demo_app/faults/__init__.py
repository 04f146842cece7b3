"""What this shop does wrong on purpose: one function each, and what loopscope shows of it.

A route calls the function at the place where a real service would make the mistake, so the fault
can be read, and found again by the agent, by its name. Those that are not in ``SWITCHED`` are
always there.
"""

from __future__ import annotations

from demo_app.faults.frozen import MOST_VOUCHER, accept_voucher, restock_in_a_thread
from demo_app.faults.on_the_loop import (
    LedgerError,
    Sale,
    ask_the_bank_on_the_loop,
    fail_every_fifth_refund,
    render_on_the_loop,
    search_by_pattern,
)
from demo_app.faults.pools import (
    DESK,
    DESK_NAME,
    MOST_LOST,
    ask_carriers_two_at_a_time,
    ask_the_depot_with_a_connection_in_hand,
    connect_for_every_order,
    make_a_client_per_offer,
    return_early_with_a_connection,
)
from demo_app.faults.tasks import count_all_shelves_at_once, tell_the_warehouse_and_forget
from demo_app.faults.waiting import (
    ask_carriers_one_after_the_other,
    ask_customs_without_a_deadline,
    audit_every_request,
    count_sales_one_by_one,
    wait_for_the_printer,
)

SWITCHED = {
    fault.__name__: fault
    for fault in (
        ask_the_bank_on_the_loop,
        search_by_pattern,
        accept_voucher,
        restock_in_a_thread,
        ask_carriers_one_after_the_other,
        ask_customs_without_a_deadline,
        count_sales_one_by_one,
        wait_for_the_printer,
        audit_every_request,
        count_all_shelves_at_once,
        tell_the_warehouse_and_forget,
        connect_for_every_order,
        ask_the_depot_with_a_connection_in_hand,
        return_early_with_a_connection,
        make_a_client_per_offer,
        ask_carriers_two_at_a_time,
    )
}
"""By the names that ``DEMO_FAULTS`` and ``/faults`` know them by."""

__all__ = [
    "DESK",
    "DESK_NAME",
    "MOST_LOST",
    "MOST_VOUCHER",
    "SWITCHED",
    "LedgerError",
    "Sale",
    "accept_voucher",
    "ask_carriers_one_after_the_other",
    "ask_carriers_two_at_a_time",
    "ask_customs_without_a_deadline",
    "ask_the_bank_on_the_loop",
    "ask_the_depot_with_a_connection_in_hand",
    "audit_every_request",
    "connect_for_every_order",
    "count_all_shelves_at_once",
    "count_sales_one_by_one",
    "fail_every_fifth_refund",
    "make_a_client_per_offer",
    "render_on_the_loop",
    "restock_in_a_thread",
    "return_early_with_a_connection",
    "search_by_pattern",
    "tell_the_warehouse_and_forget",
    "wait_for_the_printer",
]
