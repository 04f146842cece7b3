"""A small real service for Prometheus to scrape: run as ``service.py PORT LISTEN``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator

import uvicorn
from fastapi import BackgroundTasks, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse

from loopscope import Loopscope

app = FastAPI()


@app.get("/items/{item}")
async def one(item: int) -> dict[str, int]:
    """Waits a little; item 13 is missing and item 7 breaks."""
    await asyncio.sleep(0.002)
    if item == 13:
        raise HTTPException(404)
    if item == 7:
        raise HTTPException(503)
    return {"item": item}


@app.get("/block")
async def block() -> str:
    """Holds the event loop."""
    time.sleep(0.07)  # noqa: ASYNC251  # on purpose
    return "done"


@app.get("/later")
async def later(tasks: BackgroundTasks) -> str:
    """Goes on after its response."""
    tasks.add_task(asyncio.sleep, 0.05)
    return "later"


@app.get("/export")
async def export() -> StreamingResponse:
    """A stream of chunks."""

    async def rows() -> AsyncIterator[bytes]:
        for number in range(5):
            yield f"{number}\n".encode()

    return StreamingResponse(rows(), media_type="text/csv")


@app.websocket("/ws")
async def socket(websocket: WebSocket) -> None:
    """Echoes once."""
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


app.add_middleware(Loopscope, listen=sys.argv[2], max_series=200)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
