"""Whether the service can do its work, for whoever starts it."""

from __future__ import annotations

from fastapi import APIRouter

from demo_app.resources import Database

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz(database: Database) -> dict[str, str]:
    """Answers ``ok`` once a query gets through."""
    await database.fetchval("SELECT 1")
    return {"status": "ok"}
