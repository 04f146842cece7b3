"""A program that starts its server itself: ``main.py PORT``. Its app comes from a factory."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn


def make() -> Any:
    """The bare service."""
    from tests.e2e.service import app

    return app


if __name__ == "__main__":
    uvicorn.run(
        "tests.e2e.main:make",
        factory=True,
        port=int(sys.argv[1]),
        workers=int(sys.argv[2]),
        log_level="warning",
    )
