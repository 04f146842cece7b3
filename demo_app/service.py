"""The shop's web service: a plain FastAPI app, observed by one line."""

from __future__ import annotations

from fastapi import FastAPI

from demo_app.middleware import Audit
from demo_app.resources import lifespan
from demo_app.routes import ROUTERS
from loopscope import Loopscope


def create_app() -> FastAPI:
    """The shop with all its routes; starting it takes ``DEMO_DATABASE`` and ``DEMO_UPSTREAM``."""
    app = FastAPI(title="The loopscope demo shop", lifespan=lifespan)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(Audit)
    app.add_middleware(Loopscope)
    return app


app = create_app()
