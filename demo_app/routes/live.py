"""What is kept open: new orders as server-sent events, stock levels over a WebSocket."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse

from demo_app.feed import Feed
from demo_app.resources import Database, OrderFeed

router = APIRouter(prefix="/api/live", tags=["live"])

_KEEP_ALIVE_S = 1.0


@router.get("/orders")
async def new_orders(
    feed: OrderFeed,
    events: Annotated[int, Query(ge=1, le=1_000)] = 1_000,
    seconds: Annotated[float, Query(gt=0, le=3_600)] = 60,
) -> StreamingResponse:
    """Each new order as an event; ends after so many events, so many seconds, or the reader."""
    return StreamingResponse(_events(feed, events, seconds), media_type="text/event-stream")


async def _events(feed: Feed, events: int, seconds: float) -> AsyncIterator[str]:
    ends = time.monotonic() + seconds
    with feed.listen() as orders:
        yield ": welcome\n\n"
        while events and (left := ends - time.monotonic()) > 0:
            try:
                order = await asyncio.wait_for(orders.get(), min(left, _KEEP_ALIVE_S))
            except TimeoutError:
                yield ": still here\n\n"
            else:
                events -= 1
                yield f"event: order\ndata: {json.dumps(asdict(order))}\n\n"


@router.websocket("/stock")
async def stock(socket: WebSocket, database: Database) -> None:
    """Send an article number, get its stock, as often as you like."""
    await socket.accept()
    try:
        while True:
            sku = await socket.receive_text()
            left = await database.fetchval("SELECT stock FROM products WHERE sku = $1", sku)
            await socket.send_json({"sku": sku, "stock": left})
    except WebSocketDisconnect:
        return
