"""A shop of two routes that can be stopped: what the tour asks for, without a database."""

from __future__ import annotations

from typing import Any

from fastapi import Body, FastAPI

from demo_app import faults
from demo_app.middleware import Audit
from demo_app.routes.faults import router
from loopscope import Loopscope

app = FastAPI()
app.include_router(router)


@app.post("/api/orders")
async def place(new: dict[str, Any] = Body()) -> bool:  # noqa: B008 - FastAPI's way
    """Nothing is ordered; the voucher is looked at."""
    return faults.accept_voucher(new["voucher"])


@app.get("/api/products")
async def search() -> str:
    """Nothing is found."""
    faults.restock_in_a_thread()
    return "nothing"


app.add_middleware(Audit)
app.add_middleware(Loopscope)
