"""Somebody else's service: rates, mail, carriers, depots, customs, and the delays of a network."""

from __future__ import annotations

import asyncio
import random

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

RATES = {"USD": 1.08, "GBP": 0.84, "SEK": 11.3, "JPY": 171.0}


async def rate(request: Request) -> JSONResponse:
    """What one euro is worth in a currency, after 4 to 12 ms."""
    await asyncio.sleep(random.uniform(0.004, 0.012))
    currency = request.path_params["currency"]
    if currency not in RATES:
        raise HTTPException(404, f"no rate for {currency}; there are {', '.join(RATES)}")
    return JSONResponse({"currency": currency, "per_euro": RATES[currency]})


async def send_mail(request: Request) -> Response:
    """Accept a mail, after 20 to 60 ms: mail servers take their time."""
    await request.json()
    await asyncio.sleep(random.uniform(0.020, 0.060))
    return Response(status_code=202)


async def carrier(_: Request) -> JSONResponse:
    """In how many days one could deliver, after 80 to 120 ms."""
    await asyncio.sleep(random.uniform(0.080, 0.120))
    return JSONResponse({"days": random.randint(1, 9)})


async def depot(_: Request) -> JSONResponse:
    """How many of something are kept elsewhere, after 200 to 300 ms."""
    await asyncio.sleep(random.uniform(0.200, 0.300))
    return JSONResponse({"stock": random.randint(0, 99)})


async def customs(_: Request) -> JSONResponse:
    """Whether something is through customs, after 12 s."""
    await asyncio.sleep(12)
    return JSONResponse({"cleared": True})


async def healthz(_: Request) -> JSONResponse:
    """Answers as soon as the service can."""
    return JSONResponse({"status": "ok"})


app = Starlette(
    routes=[
        Route("/rates/{currency}", rate),
        Route("/mails", send_mail, methods=["POST"]),
        Route("/carriers/{name}", carrier),
        Route("/depots/{sku}", depot),
        Route("/customs", customs),
        Route("/healthz", healthz),
    ]
)
