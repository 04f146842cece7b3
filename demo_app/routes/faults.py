"""The switches of the shop's faults, to be turned while it runs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Path
from pydantic import BaseModel

from demo_app import switches
from demo_app.faults import SWITCHED

router = APIRouter(prefix="/faults", tags=["faults"])


class Fault(BaseModel):
    """One mistake of the shop's, and what loopscope shows of it."""

    name: str
    on: bool
    what: str


@router.get("")
async def listed() -> list[Fault]:
    """Every fault that has a switch."""
    return [
        Fault(name=name, on=switches.is_on(fault), what=fault.__doc__ or "")
        for name, fault in SWITCHED.items()
    ]


@router.put("/{name}")
async def on(name: Annotated[str, Path()]) -> Fault:
    """Let a fault happen from now on."""
    return _switched(name, on=True)


@router.delete("/{name}")
async def off(name: Annotated[str, Path()]) -> Fault:
    """Let a fault happen no more."""
    return _switched(name, on=False)


def _switched(name: str, *, on: bool) -> Fault:
    if name not in SWITCHED:
        raise HTTPException(404, f"no fault {name}; GET /faults lists them")
    switches.switch(name, on=on)
    return Fault(name=name, on=on, what=SWITCHED[name].__doc__ or "")
