"""A small real service for Prometheus to scrape: run as ``service.py PORT LISTEN``."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import BackgroundTasks, FastAPI, HTTPException, WebSocket
from fastapi.responses import StreamingResponse

from loopscope import Loopscope
from loopscope.agent import current_agent
from loopscope.sources.pools.meter import Level, Meter

left: set[asyncio.Task[None]] = set()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Few threads, so that some request waits for one."""
    current_default_thread_limiter().total_tokens = 2
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/items/{item}")
async def one(item: int) -> dict[str, int]:
    """Waits a little; item 13 is missing and item 7 breaks."""
    await asyncio.sleep(0.002)
    if item == 13:
        raise HTTPException(404)
    if item == 7:
        raise HTTPException(503)
    return {"item": item}


@app.get("/one-by-one")
async def one_by_one() -> str:
    """Awaits one after the other what could be awaited at one time."""
    for _ in range(2):
        await asyncio.sleep(0.01)
    return "done"


@app.get("/fan-out")
async def fan_out() -> str:
    """Makes ten tasks and waits for them, and one more that it does not wait for."""
    left.add(left_alone := asyncio.create_task(asyncio.sleep(0.05)))
    left_alone.add_done_callback(left.discard)
    await asyncio.gather(*(asyncio.sleep(0.005) for _ in range(10)))
    return "done"


class Shelf:
    """What stands for a library's pool: two places."""


shelf = Shelf()
meters: list[Meter] = []


def shelf_meter() -> Meter:
    """Measures the shelf; there is something to measure with once requests come."""
    if not meters:
        agent = current_agent()
        assert agent is not None
        book = agent.pools.book
        meters.append(book.meter(shelf, "shelf", "db.test", lambda _: Level(2.0, idle=1.0)))
    return meters[0]


@app.get("/pool")
async def pool() -> str:
    """Takes a place, and fails to get another in each of the ways there are."""
    meter = shelf_meter()
    meter.opened(0.001)
    for error in (TimeoutError(), ConnectionError(), asyncio.CancelledError()):
        meter.ask().failed(error)
    use = meter.ask()
    await asyncio.sleep(0.002)
    use.got()
    await asyncio.sleep(0.002)
    use.release()
    return "done"


@app.get("/thread")
def thread() -> str:
    """Needs a thread, of which there are two."""
    time.sleep(0.01)
    return "done"


@app.get("/block")
async def block() -> str:
    """Holds the event loop."""
    time.sleep(0.07)  # noqa: ASYNC251  # on purpose
    return "done"


@app.get("/hang")
async def hang() -> str:
    """Holds the event loop for so long that somebody looks in from outside."""
    time.sleep(0.3)  # noqa: ASYNC251  # on purpose
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


app.add_middleware(Loopscope, listen=sys.argv[2], max_series=200, sentinel=True)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
